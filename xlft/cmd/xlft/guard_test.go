package main

import (
	"strings"
	"testing"
)

func TestRefusal(t *testing.T) {
	roles := map[string]role{"web1": protects, "hung": mayProtect}
	roleOf := func(d string) role { return roles[d] }
	nameOf := func(id string) string {
		return map[string]string{"7": "web1", "8": "free"}[id]
	}
	for line, want := range map[string]string{
		"save web1 /tmp/x":                    "\"xl ft-stop web1\" first",
		"save -c web1 /tmp/x":                 "is protected",
		"save 7 /tmp/x":                       "web1 is protected",
		"save 8 /tmp/x":                       "",
		"save free web1":                      "",
		"migrate -s ssh web1 host":            "on two hosts",
		"migrate -s web1 free host":           "",
		"migrate -C /etc/conf --live web1 h":  "is protected",
		"suspend web1":                        "is protected",
		"remus -b web1 host":                  "is protected",
		"remus -Fi 100 web1 host":             "is protected",
		"remus -i100 -N /x web1 host":         "is protected",
		"remus -Fi web1 free host":            "",
		"migrate -ps ssh web1 host":           "is protected",
		"mem-set web1 512":                    "is protected",
		"block-attach web1 phy:/dev/x,xvdb,w": "is protected",
		"rename web1 web2":                    "is protected",
		"pause hung":                          "does not answer",
		"unpause web1":                        "",
		"destroy web1":                        "",
		"shutdown web1":                       "",
		"list web1":                           "",
		"console web1":                        "",
		"destroy web9--xlft":                  "the copy that this host holds of web9",
		"unpause web9--xlft":                  "\"xl ft-stop web9\" on that host",
		"console web9--xlft":                  "",
		"save":                                "",
		"save --":                             "",
		"save -- web1 f":                      "is protected",
	} {
		got := refusal(strings.Fields(line), roleOf, nameOf)
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("xl %s: %q, want %q", line, got, want)
		}
	}
}
