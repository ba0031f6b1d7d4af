package arbiter

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
)

// What a check finds of an agent, and of each of several, while its host is on.
func TestCheck(t *testing.T) {
	for script, want := range map[string]string{
		"": "",
		"[ $action = metadata ] || { echo bad password; exit 1; }": "exit status 1: bad password",
		"[ $action = metadata ] || exit 2":                         "it says that beta is off",
		"exit 2":                                                   "action metadata: exit status 2",
	} {
		f, told := agent(t, script)
		err := fenceBy(f).Check(t.Context(), "beta")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", script, err, want)
		}
		if strings.Contains(told(), "action=off") {
			t.Errorf("the agent was told %q", told())
		}
		good, _ := agent(t, "")
		if err := fenceBy(good, f).Check(t.Context(), "beta"); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), "level 2") {
			t.Errorf("%s, as the second level: %v", script, err)
		}
	}
}

// What an agent reports is one thing, what its status says another: the latter counts.
func TestStatusConfirms(t *testing.T) {
	for _, c := range []struct {
		name, script string
		won          bool
		err          string
	}{
		{"as it should be", "", true, ""},
		{"off already, so that off fails", "touch $here/off; [ $action != off ] || { echo is off >&2; exit 1; }", true, ""},
		{"success, and on", "[ $action != off ] || exit 0", false, "reports success, but its status says that the host is on"},
		{"success, and no status", "[ $action != status ] || { echo timeout; exit 1; }", false, "reports success, but can't say that the host is off"},
		{"failure, and on", "[ $action != off ] || { echo denied; exit 1; }", false, "denied (and its status says that the host is on)"},
		{"failure, and no status", "[ $action = metadata ] || { echo no route; exit 1; }", false, "no route"},
		{"everything ends with 2", "[ $action = metadata ] || exit 2", false, "the agent or its options are wrong"},
		{"a script that a shell can't read", "[ $action = metadata ] || . $here/broken", false, "wrong"},
		{"killed", "[ $action = metadata ] || kill -9 $$", false, "signal: killed"},
		{"status of something else", "[ $action != status ] || exit 3", false, "exit status 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, told := agent(t, c.script)
			if err := os.WriteFile(filepath.Join(filepath.Dir(f.Agent), "broken"), []byte("if\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			won, err := fenceBy(f).Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta"})
			if won != c.won || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("won %v, error %v; want %v, %q; it was told %q", won, err, c.won, c.err, told())
			}
		})
	}
}

// Levels are tried in turn; of one level all agents have to succeed.
func TestLevels(t *testing.T) {
	const lies = "[ $action != off ] || exit 0"
	const fails = "[ $action = metadata ] || { echo no route to BMC; exit 1; }"
	const fabric = `[ $action != metadata ] || { echo '<resource-agent><actions><action name="on" automatic="1"/><action name="off"/><action name="status"/></actions></resource-agent>'; exit; }`
	for _, c := range []struct {
		name   string
		levels [][]string
		won    bool
		called string // which agents were told to switch off
		err    string
	}{
		{"the first is enough", [][]string{{""}, {""}}, true, "1", ""},
		{"the second, if the first fails", [][]string{{fails}, {""}}, true, "1 2", ""},
		{"the second, if the first lies", [][]string{{lies}, {""}}, true, "1 2", ""},
		{"the second, if the first is unfit", [][]string{{fabric}, {""}}, true, "2", ""},
		{"both of a level", [][]string{{"", ""}}, true, "1 2", ""},
		{"one of a level is not enough", [][]string{{"", fails}}, false, "1 2", "no route to BMC"},
		{"one that lies of a level", [][]string{{"", lies}}, false, "1 2", "is on"},
		{"the next level, if one of a level fails", [][]string{{"", fails}, {""}}, true, "1 2 3", ""},
		{"the rest of a level is not tried", [][]string{{fails, ""}, {""}}, true, "1 3", ""},
		{"none", [][]string{{fails}, {lies}}, false, "1 2", "level 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, told := new(config.Fence), []func() string{}
			for _, level := range c.levels {
				var all []config.FenceAgent
				for _, script := range level {
					a, said := agent(t, script)
					all, told = append(all, a), append(told, said)
				}
				f.Levels = append(f.Levels, all)
			}
			won, err := fenceWith(f).Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta"})
			var called []string
			for i, said := range told {
				if strings.Contains(said(), "action=off") {
					called = append(called, fmt.Sprint(i+1))
				}
			}
			if won != c.won || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || strings.Join(called, " ") != c.called {
				t.Errorf("won %v, error %v, called %v; want %v, %q, %s", won, err, called, c.won, c.err, c.called)
			}
		})
	}
}

// What agents say of themselves decides whether they can be arbiters. The fabric agents
// of Debian 12's fence-agents say so by their action "on".
func TestUnfit(t *testing.T) {
	actions := func(all ...string) string {
		s := `<resource-agent name="fence_x"><parameters><parameter name="plug"/></parameters><actions>`
		for _, a := range all {
			name, more, _ := strings.Cut(a, " ")
			s += fmt.Sprintf("<action name=%q %s/>", name, more)
		}
		return s + "</actions></resource-agent>"
	}
	for _, c := range []struct{ name, out, want string }{
		{"ipmilan", actions(`on automatic="0"`, "off", "reboot", "status", "monitor"), ""},
		{"no reboot", actions(`on automatic="0"`, "off", "status"), ""},
		{"no on", actions("off", "status"), ""},
		{"scsi", actions(`on on_target="1" automatic="1"`, "off", "status"), "cuts a host off"},
		{"brocade", actions(`on automatic="1"`, "off", "status"), "cuts a host off"},
		{"only on the target", actions(`on on_target="1" automatic="0"`, "off", "status"), "cuts a host off"},
		{"rcd_serial", actions("reboot", "monitor"), "can't switch a host off"},
		{"kdump", actions("off", "monitor"), "can't say whether a host is off"},
		{"nothing", "", "is no metadata"},
		{"something else", "<html></html>", "is no metadata"},
		{"cut off", actions("off", "status")[:60], "is no metadata"},
	} {
		if err := unfit("fence_x", []byte(c.out)); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// Agents of others: Debian's package fence-agents.
func TestRealAgents(t *testing.T) {
	const dir = "/usr/sbin/"
	if _, err := os.Stat(dir + "fence_dummy"); err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skipf("no fence agents to test with: %v (\"scripts/dev/setup test\" installs them)", err)
	}
	for name, want := range map[string]string{
		"fence_ipmilan": "", "fence_apc_snmp": "", "fence_virsh": "",
		"fence_scsi": "cuts a host off", "fence_brocade": "cuts a host off", "fence_ifmib": "cuts a host off",
		"fence_kdump": "can't say whether", "fence_heuristics_ping": "can't say whether", "fence_rcd_serial": "can't switch a host off",
	} {
		err := new(Fence).fit(t.Context(), config.FenceAgent{Agent: dir + name, Timeout: time.Minute})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	state := filepath.Join(t.TempDir(), "status")
	dummy := config.FenceAgent{Agent: dir + "fence_dummy", Timeout: time.Minute, Options: map[string]string{"status_file": state}}
	if err := os.WriteFile(state, []byte("on"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fenceBy(dummy).Check(t.Context(), "beta"); err != nil {
		t.Error(err)
	}
	for _, what := range []string{"on", "off already"} {
		if won, err := fenceBy(dummy).Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta"}); !won || err != nil {
			t.Errorf("%s: %v, %v", what, won, err)
		}
		if b, _ := os.ReadFile(state); string(b) != "off" {
			t.Errorf("%s: the state is %q", what, b)
		}
	}
	if err := fenceBy(dummy).Check(t.Context(), "beta"); err == nil || !strings.Contains(err.Error(), "it says that beta is off") {
		t.Errorf("off: %v", err)
	}
	unknown := dummy
	unknown.Agent = dir + "fence_virsh" // it wants an address
	if won, err := fenceBy(unknown).Claim(t.Context(), xlft.Claim{Side: xlft.Backup, Peer: "beta"}); won || err == nil {
		t.Errorf("without its options: %v, %v", won, err)
	}
}
