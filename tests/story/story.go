// Package story plays the stories that are the machines' tests.
//
// A story is a file of commands, each followed by "----", the state that it led to and the actions, as in
// etcd-io/raft's interaction tests:
//
//	# why this story is told
//	acked 1
//	----
//	protected
//	  release 1
package story

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the stories in testdata with what the machines do; read them before committing")

// Run plays every story in testdata. newTeller returns, for a new machine, the function that carries out one command,
// given as its words, and returns the result: see Step.
func Run(t *testing.T, newTeller func() func(words []string) string) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(string(b), newTeller())
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("the story goes otherwise; -rewrite shows it in the file:\n%s", got)
			}
		})
	}
}

// play carries out the commands of a story and returns the story as it went.
func play(story string, tell func(words []string) string) string {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(story), "\n\n") {
		var cmds []string
		for l := range strings.SplitSeq(block, "\n") {
			if l == "----" {
				break
			}
			fmt.Fprintln(&out, l)
			if l != "" && !strings.HasPrefix(l, "#") {
				cmds = append(cmds, l)
			}
		}
		if len(cmds) > 0 {
			fmt.Fprintln(&out, "----")
		}
		for _, c := range cmds {
			out.WriteString(tell(strings.Fields(c)))
		}
		fmt.Fprintln(&out)
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// Number returns word i of a command as a number; 0 if there is none.
func Number(words []string, i int) uint64 {
	if i >= len(words) {
		return 0
	}
	n, _ := strconv.ParseUint(words[i], 10, 64)
	return n
}

// Step gives a machine an event and returns, as text, its state afterwards and the actions.
func Step[S fmt.Stringer, E, A any](m interface{ State() S }, ev E, step func(E) []A) string {
	acts := step(ev)
	var b strings.Builder
	fmt.Fprintln(&b, m.State())
	for _, a := range acts {
		name := fmt.Sprintf("%T", a)
		name = name[strings.LastIndexByte(name, '.')+1:]
		s := fmt.Sprintf("%+v", a)
		fmt.Fprintf(&b, "  %s%s\n", name, strings.TrimSuffix(" "+strings.Trim(s, "{}"), " "))
	}
	return b.String()
}
