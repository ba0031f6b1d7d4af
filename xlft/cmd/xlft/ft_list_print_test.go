package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode"

	"xlft/xlft/wire"
)

// What a peer calls its domains rules neither the operator's terminal nor the table.
func TestListPrintsNoControlCharacters(t *testing.T) {
	var out bytes.Buffer
	hosts := []listedHost{{ListResult: wire.ListResult{Host: "beta", Domains: []wire.ListDomain{
		{Domain: "x\x1b]0;owned\x07\x1b[2J", Role: "primary", Peer: "alpha", State: "protected\nalpha\t9\tweb1\tprimary\tbeta\tprotected\t7\t1"}}}},
		{ListResult: wire.ListResult{Host: "gamma"}, Error: "refused by peer: \x1b[2J"}}
	err := printHosts(&out, hosts, false)
	for _, text := range []string{out.String(), err.Error()} {
		if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
			t.Errorf("a control character in %q", text)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != 3 {
		t.Errorf("%d lines of a header and two hosts:\n%q", n, out.String())
	}
}
