package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"xlft/xlft/primary"
)

// A bar shows how far the first copy is. On anything but a terminal it prints
// a line per state.
type bar struct {
	w      io.Writer
	domain string
	tty    bool
	last   string
	noted  string
}

func newBar(w io.Writer, domain string) *bar {
	return &bar{w: w, domain: domain, tty: isTerminal(w)}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func (b *bar) show(st primary.Status) {
	const width = 30
	what, share, mib := st.State.String(), 0.0, st.SyncBytes>>20
	if st.SyncTotal > 0 {
		// Pages that are written meanwhile are sent again.
		share = min(float64(st.SyncBytes)/float64(st.SyncTotal), 0.99)
	}
	// The disk that is furthest behind holds the rest up.
	for _, d := range st.Disks {
		if s := float64(d.Compared) / float64(max(d.Total, 1)); !d.Synced && (what == st.State.String() || s < share) {
			what, share, mib = st.State.String()+", disk "+d.VDev, s, uint64(d.Compared)>>20
		}
	}
	if !b.tty {
		if what != b.last {
			b.last = what
			fmt.Fprintf(b.w, "%s: %s\n", b.domain, what)
		}
		return
	}
	n := int(share * width)
	b.last = fmt.Sprintf("%s: %s [%s%s] %3.0f %% %d MiB", b.domain, what,
		strings.Repeat("#", n), strings.Repeat(".", width-n), share*100, mib)
	fmt.Fprintf(b.w, "\r\033[K%s", b.last)
}

// note says why nothing goes on, once for each reason.
func (b *bar) note(why string) {
	if why != "" && why != b.noted {
		b.noted = why
		b.end(why)
	}
}

func (b *bar) end(word string) {
	if b.tty {
		fmt.Fprint(b.w, "\r\033[K")
	}
	fmt.Fprintf(b.w, "%s: %s\n", b.domain, word)
}
