package processes

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"xlft/xlft"
)

// lieLimit is how long "protected" may be said after it has ceased to be true: the
// time in which a lost backup is noticed, by a process that may be starved.
const lieLimit = 8 * ft

// watch checks that "protected" is said only while the other host could take over.
func (w *World) watch(stop <-chan struct{}) {
	var since time.Time
	for {
		select {
		case <-stop:
			return
		case <-time.After(200 * time.Millisecond):
		}
		said := false
		for _, h := range w.hosts {
			if w.off(h) || !h.protects.isActive() {
				continue
			}
			if st, err := h.status(); err == nil && st.Protected {
				said = said || w.unable(w.host(other(h.name)))
			}
		}
		switch {
		case !said:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > lieLimit:
			w.violate("P6", "\"protected\" is said, and nobody could take over, for %v", time.Since(since))
			return
		}
	}
}

// unable reports whether a host certainly has no copy of the domain.
func (w *World) unable(h *host) bool {
	if w.off(h) {
		return true
	}
	var all []struct {
		State string `json:"state"`
	}
	if err := h.ask("/receiver", "/replicas", &all); err != nil {
		return false // it may be stopped
	}
	for _, r := range all {
		if r.State == "ready" || r.State == "claiming" || r.State == "taking-over" || r.State == "running" {
			return false
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range h.domains {
		if d.life != nil {
			return false
		}
	}
	return true
}

// ask asks a daemon of the host at its socket.
func (h *host) ask(name, what string, v any) error {
	return h.control(http.MethodGet, name, what, time.Second, v)
}

// post tells the protector to do something.
func (h *host) post(what string, v any) error {
	return h.control(http.MethodPost, domainName, what, 15*time.Second, v)
}

func (h *host) control(method, name, what string, limit time.Duration, v any) error {
	path := filepath.Join(h.runDir(), xlft.FileName(name)+".sock")
	c := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	q, err := http.NewRequest(method, "http://xlft"+what, nil)
	if err != nil {
		return err
	}
	r, err := c.Do(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return json.NewDecoder(r.Body).Decode(v)
}

// status is what ft-status reads.
type status struct {
	State     string `json:"state"`
	Protected bool   `json:"protected"`
	LastError string `json:"last_error"`
}

func (h *host) status() (st status, err error) {
	l := h.w.lifeOn(h)
	if err = h.ask(domainName, "/status", &st); err == nil {
		h.w.mu.Lock()
		stopped := h.w.stopped
		h.w.mu.Unlock()
		// In the other states it is not decided yet, and the backup's copy may be what
		// runs on: what was said before stands.
		if st.Protected || !slices.Contains([]string{"recovering", "arbitrating", "blocked", "handing-over"}, st.State) {
			h.w.heard(l, st.Protected && !stopped)
		}
	}
	if err == nil && st.Protected {
		h.protects.mu.Lock()
		h.protects.proven = true
		h.protects.mu.Unlock()
	}
	return st, err
}

func (h *host) protectedNow() bool {
	st, err := h.status()
	return err == nil && st.Protected
}

// allHeard reports whether every reply that the domain has given by now, since its
// life began, leaves its host.
func (w *World) allHeard() bool {
	w.outmu.Lock()
	l := w.lives[len(w.lives)-1]
	sent := l.sent
	w.outmu.Unlock()
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(20 * time.Millisecond) {
		w.outmu.Lock()
		got := l.got
		w.outmu.Unlock()
		if got >= sent {
			return true
		}
	}
	return false
}
