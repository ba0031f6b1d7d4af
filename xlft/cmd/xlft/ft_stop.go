package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/control"
	"xlft/xlft/internal/overview"
	"xlft/xlft/internal/protector"
	"xlft/xlft/internal/xen"
	"xlft/xlft/primary"
)

func (a *app) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ft-stop DOMAIN",
		Short:   "end the protection of a domain, which runs on",
		GroupID: "domain",
		Long: `Ends the protection of a domain: the backup destroys its copy, what was held of
the domain's output is let out, and the domain runs on. Returns when that is so.
A domain with protect = true stays unprotected until it is started again, or until
"xl ft-start".`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeProtected,
		RunE: func(cmd *cobra.Command, args []string) error {
			if c, err := a.config(); err == nil { // else stop says why
				if err := protector.MarkAgain(c.RunDir, args[0], time.Time{}); err != nil {
					return fmt.Errorf("ft-stop: %w", err)
				}
			}
			return a.stop(cmd, args[0])
		},
	}
}

// stop ends the protection of a domain, or has it left alone.
func (a *app) stop(cmd *cobra.Command, domain string) error {
	err := a.end(cmd, domain, (*protector.Client).Stop)
	if c, cerr := a.config(); cerr == nil && errors.Is(err, control.ErrDown) && protector.Waits(c.RunDir, domain) {
		if waited, stopErr := stopUnit(cmd.Context(), domain); stopErr != nil {
			return fmt.Errorf("%w; %w", err, stopErr)
		} else if waited {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: stopped: its protector does not wait for it any more\n", domain)
			return nil
		}
	}
	if errors.Is(err, control.ErrDown) {
		if waited, markErr := a.leave(cmd.Context(), domain); markErr != nil {
			return fmt.Errorf("%w; %w", err, markErr)
		} else if waited {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: stopped: it was not protected, and is not tried any more until \"xl ft-start %s\", or until it is started again\n", domain, domain)
			return nil
		}
	}
	return err
}

// leave has a domain that runs here, and that is to be protected, left alone. A protector of
// it may be starting, which no operator can ask anything yet.
func (a *app) leave(ctx context.Context, domain string) (waited bool, err error) {
	c, err := a.config()
	if err != nil || !c.For(domain).Protect {
		return false, nil
	}
	if protector.Left(c, domain) {
		// Nobody may be kept from finding out who owns it, and from letting its output out.
		return true, fmt.Errorf("its last protector died before it was decided who owns the domain, which may be held: a protector has to begin first. \"xl ft-status %s\", \"systemctl status %s\"", domain, unitOf(domain))
	}
	h, err := xen.Open()
	if err != nil {
		return false, err
	}
	defer h.Close()
	d, err := h.Lookup(domain)
	if errors.Is(err, xen.ErrNoDomain) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if d.Name != domain { // an ID: protections go by names
		return true, fmt.Errorf("that is %s: \"xl ft-stop %s\"", d.Name, d.Name)
	}
	mark := func() error { return protector.MarkStopped(c.RunDir, d.Name, protector.Instance(d)) }
	if err := mark(); err != nil {
		return true, err
	}
	started, err := stopUnit(ctx, d.Name)
	if err == nil && started { // it removes the mark when it starts
		err = mark()
	}
	return true, err
}

// end ends a session, and prints how it ended.
func (a *app) end(cmd *cobra.Command, domain string, how func(*protector.Client, context.Context) (primary.Outcome, error)) error {
	fail := func(err error) error { return fmt.Errorf("%s: %s: %w", cmd.Name(), domain, err) }
	c, err := a.config()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.Name(), err)
	}
	client := protector.NewClient(c.RunDir, domain)
	said, stop := tellStates(cmd.Context(), client, domain, cmd.ErrOrStderr())
	outcome, err := how(client, cmd.Context())
	stop()
	<-said
	if errors.Is(err, control.ErrDown) {
		return fail(fmt.Errorf("is not protected from this host (protector %w)", err))
	}
	if err != nil {
		return fail(err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", domain, outcomes[outcome])
	return nil
}

// tellStates prints the states that a session goes through while an operator waits
// for its end, and that its protector does not answer, until stop is called.
func tellStates(ctx context.Context, client *protector.Client, domain string, w io.Writer) (done <-chan struct{}, stop func()) {
	ctx, stop = context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		last := ""
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			ask, cancel := context.WithTimeout(ctx, overview.Patience)
			st, err := client.Status(ask)
			text := st.State.String()
			if st.LastError != "" {
				text += ": " + st.LastError
			}
			if err != nil && ask.Err() != nil && ctx.Err() == nil {
				text = fmt.Sprintf("the protector does not answer: it is stopped, or hangs. \"systemctl status %s\" shows it; \"systemctl kill -s KILL %s\" ends it, and its successor finds out who owns the domain", unitOf(domain), unitOf(domain))
			} else if err != nil {
				text = ""
			}
			cancel()
			if text != "" && text != last {
				fmt.Fprintf(w, "%s: %s\n", domain, text)
				last = text
			}
		}
	}()
	return ended, stop
}

// tellEvery is the time between two looks at a session that an operator waits for.
const tellEvery = 2 * time.Second

// outcomes says what became of a domain whose session ended without an error.
var outcomes = map[primary.Outcome]string{
	primary.Stopped:      "stopped: it runs on here, unprotected",
	primary.SwitchedOver: "runs on its backup now, unprotected",
}
