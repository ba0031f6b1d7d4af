package arbiter

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"xlft/xlft"
)

// A Health finds out, all the time, whether an arbiter could decide against a peer. The
// processes of a host share what one of them was told: a power controller is asked
// once in each interval, however many domains are protected.
type Health struct {
	Arbiter xlft.ArbiterChecker
	Peer    string
	Dir     string        // where the answers are shared
	Every   time.Duration // between two questions
	Log     *zap.Logger
	// Backup, if set, asks the other host whether its arbiter could decide; "" if so.
	Backup func(ctx context.Context) (string, error)

	now  atomic.Pointer[xlft.Health]
	last string // what the other host said
	said xlft.Said
}

// checkLimit bounds one question. An agent that needs longer could not be waited for
// either while a domain stands still.
const checkLimit = 30 * time.Second

// Now returns the newest answer; the zero Health if there is none yet.
func (h *Health) Now() xlft.Health {
	if v := h.now.Load(); v != nil {
		return *v
	}
	return xlft.Health{}
}

// Run asks until ctx ends. Others may have asked meanwhile: their answers are looked at
// four times in each interval.
func (h *Health) Run(ctx context.Context) {
	t := time.NewTicker(max(h.Every/4, time.Second))
	defer t.Stop()
	for {
		h.look(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *Health) look(ctx context.Context) {
	v, asked := h.shared(ctx)
	if ctx.Err() != nil {
		return
	}
	if h.Backup != nil && (asked || h.now.Load() == nil || v.At != h.now.Load().At) {
		// With each new answer here; a host that can't be asked leaves the last word.
		ask, cancel := context.WithTimeout(ctx, checkLimit)
		if said, err := h.Backup(ask); err == nil {
			h.last = said
		}
		cancel()
	}
	if v.Error == "" && h.last != "" {
		v.Error = h.Peer + ": " + h.last
	}
	h.now.Store(&v)
	switch {
	case !h.said.New("health", v.Error):
	case v.Error != "":
		h.Log.Error("no arbiter could decide now, if a host or the network failed", zap.String("peer", h.Peer), zap.String("why", v.Error))
	case v.At != (time.Time{}):
		h.Log.Info("the arbiter could decide", zap.String("peer", h.Peer))
	}
}

// shared returns the newest answer that a process of this host has, and asks itself if
// that is too old and nobody else is asking. A question that hangs in another process
// keeps nobody waiting.
func (h *Health) shared(ctx context.Context) (v xlft.Health, asked bool) {
	path := filepath.Join(h.Dir, "arbiter-"+xlft.FileName(h.Peer)+".health")
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &v) == nil && h.fresh(v) {
		return v, false
	}
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		defer f.Close()
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return v, false
		}
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &v) == nil && h.fresh(v) {
			return v, false
		}
	}
	ask, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	err = h.Arbiter.Check(ask, h.Peer)
	v = xlft.Health{At: time.Now()}
	if err != nil {
		v.Error = err.Error()
	}
	if ctx.Err() != nil {
		return v, false // this process ends: what it saw says nothing
	}
	if b, err := json.Marshal(v); err == nil {
		tmp := path + ".new"
		if os.WriteFile(tmp, b, 0o600) == nil {
			os.Rename(tmp, path)
		}
	}
	return v, true
}

// fresh reports whether an answer is of this interval. One of the future is of before a
// clock was set.
func (h *Health) fresh(v xlft.Health) bool {
	age := time.Since(v.At)
	return age >= 0 && age < h.Every
}
