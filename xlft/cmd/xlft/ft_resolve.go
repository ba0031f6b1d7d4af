package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/control"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
	"xlft/xlft/wire"
)

func (a *app) resolveCommand() *cobra.Command {
	var asJSON, yes bool
	words := map[xlft.Word]*bool{}
	c := &cobra.Command{
		Use:     "ft-resolve [flags] DOMAIN",
		Short:   "decide which host runs a domain, where nobody else can",
		GroupID: "domain",
		Long: `Takes an operator's word on a domain that waits for a decision: "blocked" on its
primary, "claiming" on its backup, or "taking-over" on a backup that lost its power
in the middle of a takeover. First it asks the other host, and prints what is known.
Without one of the words it does no more than that.

  --peer-is-off  the other host has no power: the domain is to run here. That is what
                 a fence agent would have said. If you took its power, look there right
                 before whether it ran the domain: what it ran is lost
  --take-over    the domain does not run on the other host, and will not: it is to run
                 here. Refused for disks on shared storage, where a host that has
                 power could still write
  --give-up      the copy here is not to run, and is destroyed

A word is taken only where nothing else is known. It is refused if nothing waits, or
if the other host answers: then decide there. Both hosts run the domain only if the
word was not true: look at the other host before you say it. The word takes effect at
once, and the log of the protector or receiver keeps who said it and what was known.

The exit status is 0 if the word is in effect or, without a word, if the domain waits
for one, and otherwise 1.`,
		Example: `  xl ft-resolve web1
  xl ft-resolve web1 --peer-is-off`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWaiting,
		RunE: func(cmd *cobra.Command, args []string) error {
			var word xlft.Word
			for w, said := range words {
				if *said {
					word = w
				}
			}
			if err := a.resolve(cmd, args[0], word, yes, asJSON); err != nil {
				return fmt.Errorf("ft-resolve: %w", err)
			}
			return nil
		},
	}
	words[xlft.PeerIsOff] = c.Flags().Bool(string(xlft.PeerIsOff), false, "the other host has no power: the domain is to run here")
	words[xlft.TakeOver] = c.Flags().Bool(string(xlft.TakeOver), false, "the domain does not run on the other host and will not: it is to run here")
	words[xlft.GiveUp] = c.Flags().Bool(string(xlft.GiveUp), false, "the copy here is not to run")
	c.MarkFlagsMutuallyExclusive(string(xlft.PeerIsOff), string(xlft.TakeOver), string(xlft.GiveUp))
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask back")
	c.Flags().BoolVar(&asJSON, "json", false, "print what is known as JSON; with a word it needs --yes")
	return c
}

// decides is the daemon that a domain's decision waits in.
type decides struct {
	known   xlft.Decision
	resolve func(context.Context, protector.Resolution) (xlft.Decision, error)
}

// resolvePatience is how long a daemon may take to ask the other host and answer.
const resolvePatience = overview.Patience + wire.OwnerTimeout

// waiting finds the daemon of this host that a domain's decision waits in, if there is
// one.
func waiting(ctx context.Context, runDir, domain string) (w decides, err error) {
	ask, cancel := context.WithTimeout(ctx, resolvePatience)
	defer cancel()
	p := protector.NewClient(runDir, domain)
	w.resolve = p.Resolve
	if w.known, err = p.Decision(ask); err == nil && w.known.NotNow == "" {
		return w, nil
	}
	if err != nil && !errors.Is(err, control.ErrDown) {
		return w, err
	}
	socket := control.Socket(runDir, control.Receiver)
	var d xlft.Decision
	switch rerr := control.Call(ask, socket, http.MethodGet, "/decision?domain="+url.QueryEscape(domain), nil, &d); {
	case rerr == nil && (err != nil || d.NotNow == ""):
		w.known, err = d, nil
		w.resolve = func(ctx context.Context, a protector.Resolution) (d xlft.Decision, err error) {
			err = control.Call(ctx, socket, http.MethodPost, "/resolve", a, &d)
			return d, err
		}
	case rerr != nil && err != nil:
		err = rerr
	}
	return w, err
}

// errNobodyWaits says where the decision could wait instead.
func errNobodyWaits(ctx context.Context, runDir, stateDir, domain, why string) error {
	rows, err := overview.Rows(ctx, runDir, stateDir)
	if err == nil {
		for _, r := range rows {
			if r.Domain == domain && r.State == overview.ProtectorDead {
				return fmt.Errorf("%s: its protector, which would take the word, does not run: if \"xl list\" shows the domain here, \"systemctl start %s\" first; if not, decide on %s", domain, unitOf(domain), r.Peer)
			}
		}
	}
	return fmt.Errorf("%s waits for no decision here: %s", domain, why)
}

func (a *app) resolve(cmd *cobra.Command, domain string, word xlft.Word, yes, asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	c, err := a.config()
	if err != nil {
		return err
	}
	w, err := waiting(ctx, c.RunDir, domain)
	switch {
	case errors.Is(err, control.ErrDown):
		return errNobodyWaits(ctx, c.RunDir, c.StateDir, domain, "neither a protector of it nor the receiver runs")
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return fmt.Errorf("%s: its daemon does not answer: \"xl ft-status %s\" shows which one it is", domain, domain)
	case err != nil:
		return fmt.Errorf("%s: %w", domain, err)
	}
	if asJSON && word == "" {
		if err := printJSON(out, w.known); err != nil {
			return err
		}
	}
	if w.known.NotNow != "" {
		return errNobodyWaits(ctx, c.RunDir, c.StateDir, domain, w.known.NotNow)
	}
	if !asJSON {
		if err := printDecision(out, w.known, word, time.Now()); err != nil {
			return err
		}
	}
	if word == "" {
		return nil
	}
	if err := w.known.Refuses(word); err != nil {
		return err
	}
	if !yes {
		in := cmd.InOrStdin()
		f, ok := in.(*os.File)
		if asJSON || !ok || !isTerminal(f) {
			return errNobody
		}
		if err := confirm(in, out, w.known.Domain); err != nil {
			return err
		}
	}
	d, err := w.resolve(ctx, protector.Resolution{Domain: domain, Word: word, By: operator()})
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(out, d)
	}
	_, err = fmt.Fprintf(out, "%s: %s\n", domain, effect(d))
	return err
}

var errNobody = errors.New("nobody can be asked back here: --yes says that the word is true. Nothing was changed")

// confirm asks an operator for the domain's name.
func confirm(in io.Reader, out io.Writer, domain string) error {
	fmt.Fprintf(out, "Type the name of the domain if that is so: ")
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(out)
		return errNobody
	}
	if strings.TrimSpace(line) != domain {
		return errors.New("not confirmed: nothing was changed")
	}
	return nil
}

// operator names who calls the command.
func operator() string {
	if u := os.Getenv("SUDO_USER"); u != "" {
		return u
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// printDecision prints what is known of a domain that waits for an operator's word,
// and what the words mean, or the one that was said.
func printDecision(out io.Writer, d xlft.Decision, word xlft.Word, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(k, format string, args ...any) { fmt.Fprintf(w, k+":\t"+format+"\n", args...) }
	line("Domain", "%s", d.Domain)
	line("Waits here", "%s", here(d))
	if !d.Since.IsZero() {
		line("Since", "%s, %v ago", d.Since.Format(time.DateTime), now.Sub(d.Since).Round(time.Second))
	}
	if d.Generation > 0 {
		line("Generation", "%d", d.Generation)
	} else {
		line("Generation", "not known: its record is lost")
	}
	if !d.Open {
		checkpoint := "none in this life of its protector"
		if !d.LastAck.IsZero() {
			checkpoint = fmt.Sprintf("%d, acked %s, %v ago", d.Epoch, d.LastAck.Format(time.DateTime), now.Sub(d.LastAck).Round(time.Second))
		}
		line("Newest checkpoint", "%s", checkpoint)
	}
	line("Arbiter", "%s", d.Arbiter)
	if d.Said != "" {
		line("Last word", "%s", d.Said)
	}
	for _, a := range d.Answers {
		line("Asked now", "%s", a)
	}
	if d.Handed {
		line("Note", "it was handed over to %s, and may have run there: its clients may know more than the copy here", d.Peer)
	}
	if d.Shared {
		line("Note", "its disks are on storage that both hosts write to")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, v := range []xlft.Word{xlft.PeerIsOff, xlft.TakeOver, xlft.GiveUp} {
		if word != "" && v != word {
			continue
		}
		text := meaning(d, v)
		if err := d.Refuses(v); err != nil {
			text = "refused: " + err.Error()
		}
		fmt.Fprintf(out, "--%s: %s\n", v, text)
	}
	return nil
}

// here says how a domain waits on this host.
func here(d xlft.Decision) string {
	switch {
	case d.Open:
		return "no copy of it is here; whether it ran here is open"
	case d.Host == xlft.Primary:
		return fmt.Sprintf("%s: it is here, and its output is held", d.State)
	}
	return fmt.Sprintf("%s: its copy is here, and does not run", d.State)
}

// meaning says what a word does.
func meaning(d xlft.Decision, w xlft.Word) string {
	peer, domain := cmp.Or(d.Peer, "the other host"), d.Domain
	switch {
	case d.Open && w == xlft.TakeOver:
		return fmt.Sprintf("it counts as having run here: %s destroys its older copy. Then \"xl create\" it here from its disks", peer)
	case d.Open:
		return fmt.Sprintf("it counts as never having run here: a copy that %s has runs on, and what clients may have heard from here is forgotten", peer)
	case w == xlft.GiveUp:
		return fmt.Sprintf("the copy of %s here is destroyed, with all that is held of its output. If %s neither runs it nor has a copy, it is lost", domain, peer)
	}
	claim := fmt.Sprintf("%s has no power", peer)
	if w == xlft.TakeOver {
		claim = fmt.Sprintf("%s does not run on %s, and will not", domain, peer)
	}
	if d.Host == xlft.Primary {
		return fmt.Sprintf("%s. It runs on here, unprotected, and its held output leaves. If that is not true, both hosts run it", claim)
	}
	return fmt.Sprintf("%s. It runs on here from its newest checkpoint. If that is not true, both hosts run it", claim)
}

// effect says what a word has brought about.
func effect(d xlft.Decision) string {
	switch {
	case d.State == string(xlft.HostOwner):
		return "it counts as having run here, and older copies are outdated; \"xl create\" starts it from its disks"
	case d.State == string(xlft.HostFailed):
		return "it counts as never having run here"
	case !d.Word.Here():
		return "given up: the copy here is destroyed"
	case d.Host == xlft.Primary:
		return "runs on here, unprotected; it is protected again once its backup is back"
	}
	return "runs here now, unprotected; \"xl ft-start\" protects it again"
}

// completeWaiting completes the name of a domain that may wait for a decision.
func (a *app) completeWaiting(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	names, how := a.completeProtected(cmd, args, word)
	c, err := a.config()
	if err != nil {
		return names, how
	}
	ask, cancel := context.WithTimeout(cmd.Context(), overview.Patience)
	defer cancel()
	var replicas []backup.Status
	if control.Call(ask, control.Socket(c.RunDir, control.Receiver), http.MethodGet, "/replicas", nil, &replicas) == nil {
		for _, r := range replicas {
			if r.State == backup.Claiming {
				names = append(names, r.Domain)
			}
		}
	}
	return names, how
}
