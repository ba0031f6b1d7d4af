// Command xlft keeps Xen domains alive through the loss of their host.
//
// Its ft- commands are reached as "xl ft-..." through scripts/xl; the daemons
// behind them are started by systemd.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"xlft/xlft/config"
	"xlft/xlft/wire"
)

// version is set by the linker.
var version = "devel"

func software() string { return "xlft " + version }

func main() {
	// Memory that a large checkpoint took goes back soon: it is the domains'.
	debug.SetGCPercent(50)
	// A journal that is restarted, or a terminal that is closed, ends nothing by
	// itself: a write then fails. SIGHUP is a stop, unless a daemon has another use
	// for it.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		complain(os.Stderr, err)
		os.Exit(exitStatus(err))
	}
}

// A decidedError is the end of a daemon that has done what there was to do: to
// start it again would not help.
type decidedError struct{ error }

func (e decidedError) Unwrap() error { return e.error }

// exitDecided is the exit status of a protector whose end was decided, by an
// operator, a failed first start, the domain or its backup. Any other end is an
// accident, after which systemd starts a successor (xlft@.service).
const exitDecided = 3

// exitNoArbiter is ft-status' exit status for a domain that is protected, while no
// arbiter could decide.
const exitNoArbiter = 2

// exitUnverified is disk verify's exit status if it is not known whether the copies
// differ.
const exitUnverified = 2

func exitStatus(err error) int {
	if errors.Is(err, errNoArbiter) {
		return exitNoArbiter
	}
	var unverified *unverifiedError
	if errors.As(err, &unverified) {
		return exitUnverified
	}
	var d decidedError
	if errors.As(err, &d) {
		return exitDecided
	}
	return 1
}

// app is what commands share.
type app struct {
	configPath string
}

func (a *app) config() (*config.Config, error) { return config.Load(a.configPath) }

func root() *cobra.Command {
	a := &app{}
	c := &cobra.Command{
		Use:   "xlft",
		Short: "fault tolerance for Xen domains",
		Long: `xlft keeps a running Xen domain alive through the loss of its host: a second
host holds an up-to-date copy, and runs it on when the first one dies. What the
domain sends waits until the copy holds the state that sent it.

The ft- commands are meant to be called through xl: "xl ft-start web1".`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	path := os.Getenv("XLFT_CONFIG")
	if path == "" {
		path = config.DefaultPath
	}
	c.PersistentFlags().StringVar(&a.configPath, "config", path, "configuration file")
	c.AddGroup(&cobra.Group{ID: "domain", Title: "Commands for domains:"}, &cobra.Group{ID: "host", Title: "Commands for hosts:"})
	c.AddCommand(
		a.startCommand(), a.stopCommand(), a.disarmCommand(), a.statusCommand(), a.listCommand(), a.checkCommand(), a.failoverCommand(), a.resolveCommand(), a.setCommand(), a.drainCommand(), a.undrainCommand(), a.waitCommand(),
		a.keygenCommand(), a.diskCommand(), a.inspectCommand(), a.configCommand(), a.eventsCommand(), a.metricsCommand(),
		a.protectCommand(), a.receiveCommand(), a.workerCommand(), a.guardCommand(), a.keepCommand(),
	)
	for _, f := range extra {
		c.AddCommand(f(c))
	}
	return c
}

// extra makes commands that only a build with their tag has.
var extra []func(root *cobra.Command) *cobra.Command

// complain prints an error, and what to do about it if that is known.
func complain(w io.Writer, err error) {
	fmt.Fprintln(w, err)
	var ps *problemsError
	if errors.As(err, &ps) {
		for _, p := range ps.problems {
			fmt.Fprintf(w, "  - %s: %s\n    %s\n", p.Host, wire.Printable(p.What), wire.Printable(p.Advice))
		}
		return
	}
	if a := advice(err); a != "" {
		fmt.Fprintln(w, "  "+strings.ReplaceAll(a, "\n", "\n  "))
	}
}

// daemonLog logs to the journal, or to whoever reads standard error: one line
// an event, as JSON unless it is a terminal.
func daemonLog() *zap.Logger {
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	var e zapcore.Encoder
	if st, err := os.Stderr.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		e = zapcore.NewConsoleEncoder(enc)
	} else {
		e = zapcore.NewJSONEncoder(enc)
	}
	return zap.New(zapcore.NewCore(e, zapcore.Lock(os.Stderr), zap.InfoLevel))
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
