//go:build linux

package lab

import (
	"bufio"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// The release the hosts run: the one whose Xen and QEMU the lab is known to work with.
const (
	suite         = "bookworm"
	defaultMirror = "http://deb.debian.org/debian"
	securityPath  = "http://deb.debian.org/debian-security"
)

// A source is one line of a sources.list: an archive and a suite in it.
type source struct{ uri, suite string }

func (s source) String() string { return "deb " + s.uri + " " + s.suite + " main" }

// debianSources returns where this machine's apt gets bookworm, its updates and its security fixes from; Debian's own
// archive provides what apt does not have. The first source is the main one.
func debianSources(etcApt string) []source {
	var found []source
	files, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*")) // the pattern is a good one
	sort.Strings(files)
	for _, name := range append([]string{filepath.Join(etcApt, "sources.list")}, files...) {
		body, err := os.ReadFile(name)
		if err != nil {
			continue // most systems have one or the other
		}
		switch filepath.Ext(name) {
		case ".list":
			found = append(found, parseList(string(body))...)
		case ".sources":
			found = append(found, parseDeb822(string(body))...)
		}
	}
	want := []source{
		{defaultMirror, suite},
		{defaultMirror, suite + "-updates"},
		{securityPath, suite + "-security"},
	}
	for i := range want {
		for _, s := range found {
			if s.suite == want[i].suite {
				want[i] = s
				break
			}
		}
	}
	return want
}

// parseList returns the sources of main in a one-line-style file.
func parseList(body string) []source {
	var list []source
	lines := bufio.NewScanner(strings.NewReader(body))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if i, j := strings.Index(line, "["), strings.Index(line, "]"); i >= 0 && j > i {
			line = line[:i] + line[j+1:] // options
		}
		words := strings.Fields(line)
		if len(words) >= 4 && words[0] == "deb" && has(words[3:], "main") {
			list = append(list, source{strings.TrimSuffix(words[1], "/"), words[2]})
		}
	}
	return list
}

// parseDeb822 returns the sources of main in a file of stanzas.
func parseDeb822(body string) []source {
	var list []source
	for _, stanza := range strings.Split(body, "\n\n") {
		fields := map[string][]string{}
		key := ""
		for _, line := range strings.Split(stanza, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				fields[key] = append(fields[key], strings.Fields(line)...)
			default:
				name, value, _ := strings.Cut(line, ":")
				key = strings.ToLower(strings.TrimSpace(name))
				fields[key] = strings.Fields(value)
			}
		}
		if !has(fields["types"], "deb") || !has(fields["components"], "main") || has(fields["enabled"], "no") {
			continue
		}
		for _, uri := range fields["uris"] {
			for _, s := range fields["suites"] {
				list = append(list, source{strings.TrimSuffix(uri, "/"), s})
			}
		}
	}
	return list
}

func has(words []string, word string) bool {
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}
