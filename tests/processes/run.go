package processes

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Options say what a run is.
type Options struct {
	Binary  string // xlft, built with the tag simxen
	Arbiter string // "none" or "fence"
	Seed    uint64
	For     time.Duration
	Faults  *regexp.Regexp // names of the faults to choose from; nil: all
	Story   io.Writer      // nil: the story is in the report alone
	Broken  bool           // violations are what is looked for
	Dir     string         // for the hosts' files; short, since sockets are in it
}

// A Report is what a run found.
type Report struct {
	Violations []string
	Story      []string
	Counts     Counts
	Took       time.Duration
}

// healLimit is how long the hosts may take, after all faults, until the domain is
// protected again.
const healLimit = 40 * time.Second

// Run runs the hosts until the time is over or a promise is broken.
func Run(o Options) (r Report, err error) {
	w := &World{
		o: o, dir: o.Dir, begun: time.Now(), rng: rand.New(rand.NewPCG(o.Seed, 0)), out: o.Story, groups: map[string]bool{},
		waiting: map[uint64]chan reply{}, Counts: Counts{Faults: map[string]int{}},
	}
	w.history.ops, w.history.ends = map[uint64][]porcupine.Operation{}, map[uint64]time.Duration{}
	defer func() { r = Report{w.violations, w.events, w.Counts, w.now()} }()
	if err := w.begin(); err != nil {
		w.end()
		return r, err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range clients {
		wg.Go(func() { w.client(n, stop) })
	}
	wg.Go(func() { w.operate(stop) })
	wg.Go(func() { w.watch(stop) })
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
				w.check(false)
			}
		}
	})
	for w.heal() && w.now() < o.For {
		w.round()
	}
	close(stop)
	wg.Wait()
	w.end()
	w.check(true)
	return r, nil
}

func (w *World) begin() (err error) {
	if w.net, err = newNetwork(); err != nil {
		return err
	}
	if !w.net.netem {
		w.say("this kernel has no netem: a slow network loses what it can't carry, and nothing else")
	}
	prints := map[string]string{}
	for i, name := range []string{"A", "B"} {
		h, err := w.newHost(name)
		if err != nil {
			return err
		}
		w.hosts[i] = h
		var bad bytes.Buffer
		keygen := exec.Command(w.o.Binary, "keygen", "--dir", filepath.Join(h.dir, "id"), "--name", name)
		keygen.Stderr = &bad
		out, err := keygen.Output()
		if err != nil {
			return fmt.Errorf("keygen: %w: %s", err, bad.String())
		}
		prints[name] = strings.TrimSpace(string(out))
		if err := h.serve(); err != nil {
			return err
		}
		if err := h.serveAgent(); err != nil {
			return err
		}
	}
	for _, h := range w.hosts {
		if err := h.configure(prints[other(h.name)]); err != nil {
			return err
		}
		if err := h.powerOn(); err != nil {
			return err
		}
	}
	w.hosts[0].create()
	return nil
}

func (w *World) end() {
	w.outmu.Lock()
	w.history.closed = true // what is let out at the end, nobody hears
	w.outmu.Unlock()
	for _, h := range w.hosts {
		if h != nil {
			h.powerOff("the run ends")
			if h.hv != nil {
				h.hv.Close()
			}
			if h.agent != nil {
				h.agent.Close()
			}
		}
	}
	w.readLogs()
	if w.net != nil {
		w.net.close()
	}
	for g := range w.groups {
		os.Remove(g)
	}
}

// readLogs looks for what no daemon may ever say.
func (w *World) readLogs() {
	logs, _ := filepath.Glob(filepath.Join(w.dir, "*", "*.log"))
	for _, l := range logs {
		b, err := os.ReadFile(l)
		if err != nil {
			continue
		}
		for _, bad := range []string{"DATA RACE", "\npanic:", "\"panic\"", "fatal error:"} {
			if _, after, ok := bytes.Cut(b, []byte(bad)); ok {
				w.violate("panic", "%s has %q: %.600s", l, bad, after)
			}
		}
	}
}

// operate is the operator: whoever runs the domain is to protect it.
func (w *World) operate(stop <-chan struct{}) {
	next := map[*host]time.Time{}
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		hosts, _ := w.running()
		w.mu.Lock()
		stopped := w.stopped
		w.mu.Unlock()
		for _, h := range hosts {
			if !stopped && !h.protects.isActive() && time.Now().After(next[h]) {
				next[h] = time.Now().Add(500 * time.Millisecond)
				w.power.Lock()
				if h.on {
					h.protects.start()
				}
				w.power.Unlock()
			}
		}
	}
}

// round does some faults, and undoes them.
func (w *World) round() {
	between := func(from, to time.Duration) time.Duration {
		return from + time.Duration(w.rng.Int64N(int64(to-from)))
	}
	n := []int{1, 1, 1, 1, 1, 2, 2, 2, 3, 4}[w.rng.IntN(10)]
	w.outmu.Lock()
	w.faults, w.losses = nil, 0
	w.outmu.Unlock()
	var wg sync.WaitGroup
	for range n {
		k := w.choose()
		time.Sleep(between(0, 1200*time.Millisecond))
		on, peer := w.sides()
		// What it is done to, and since when, must be known before anybody reacts.
		f := &fault{kind: k.name, from: w.now(), host: "unknown"}
		w.outmu.Lock()
		w.faults = append(w.faults, f)
		w.outmu.Unlock()
		host, undo, lasts := k.act(w, on, peer, between)
		w.outmu.Lock()
		f.host = host
		if host == "" {
			w.faults = slices.DeleteFunc(w.faults, func(o *fault) bool { return o == f })
			w.outmu.Unlock()
			continue
		}
		if w.Counts.Faults[k.name]++; k.fatal {
			w.losses++
		}
		w.outmu.Unlock()
		w.say("%s (%s) for %v", k.name, host, lasts.Round(time.Millisecond))
		if undo != nil {
			wg.Go(func() {
				time.Sleep(lasts)
				undo()
				w.say("over: %s", k.name)
			})
		}
	}
	wg.Wait()
	w.operator.Wait()
	time.Sleep(between(0, time.Second))
}

// choose draws a kind of fault.
func (w *World) choose() kind {
	for {
		k := kinds[w.rng.IntN(len(kinds))]
		if w.o.Arbiter == "none" && (k.split || k.fence) || w.o.Faults != nil && !w.o.Faults.MatchString(k.name) {
			continue
		}
		return k
	}
}

// sides returns the host that runs the domain, and the other one.
func (w *World) sides() (on, peer *host) {
	on, peer = w.hosts[0], w.hosts[1]
	if hosts, _ := w.running(); len(hosts) > 0 && hosts[0] != on {
		return peer, on
	}
	return on, peer
}

// heal gives the hosts their power back, and waits until the domain runs once,
// answers and is protected. It reports whether that came to be.
func (w *World) heal() bool {
	for _, h := range w.hosts {
		if err := h.powerOn(); err != nil {
			w.violate("harness", "power on %s: %v", h.name, err)
			return false
		}
	}
	begun, seen := time.Now(), time.Now()
	var why string
	resolved := false
	for time.Since(begun) < healLimit {
		if w.broken() {
			return false
		}
		hosts, steps := w.running()
		switch {
		case len(hosts) > 0:
			seen = time.Now()
		case time.Since(seen) > 10*ft:
			w.outmu.Lock()
			if w.losses < 2 {
				w.violateLocked("P5", "one copy was taken at most, and the domain is lost")
			}
			w.tell("the domain is lost")
			w.Counts.Lost++
			w.outmu.Unlock()
			w.history.world.Add(1)
			w.hosts[w.rng.IntN(2)].create()
			continue
		}
		for _, h := range w.hosts {
			if !h.on { // fenced meanwhile: an operator looks after it
				h.powerOn()
			}
		}
		why = fmt.Sprintf("the domain is on %d hosts, and takes steps on %d", len(hosts), steps)
		if len(hosts) == 1 {
			st, err := hosts[0].status()
			if st.State == "blocked" && time.Since(begun) > 10*ft && !resolved {
				resolved = w.resolve(hosts[0])
			}
			why = fmt.Sprintf("%s on %s: %s %v", st.State, hosts[0].name, st.LastError, err)
			if st.Protected && w.answers() {
				if w.allHeard() {
					return true
				}
				// One that was lost again meanwhile is waited for.
				if now, _ := w.running(); len(now) == 1 && now[0] == hosts[0] && hosts[0].protectedNow() {
					w.violate("P5", "some of what the domain on %s has sent never leaves", hosts[0].name)
					return false
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.violate("P5, P6", "not well again %v after the last fault: %s", healLimit, why)
	return false
}

// resolve is the operator where the copy on a host waits, since the other host lost its power during a takeover: nobody
// but somebody who was there can know whether the domain ran. It reports whether that is so.
func (w *World) resolve(h *host) bool {
	peer := w.host(other(h.name))
	known, _ := peer.xlft(15*time.Second, "ft-resolve", "--json", domainName)
	if !strings.Contains(known, `"open": true`) {
		return false
	}
	word := "--give-up" // it never ran there
	if w.lifeOn(peer) != nil {
		word = "--take-over" // it did, and is lost with that power: the copy here is older
		w.excused()
	}
	out, err := peer.xlft(15*time.Second, "ft-resolve", word, "--yes", domainName)
	w.say("ft-resolve %s on %s: %s %v", word, peer.name, out, err)
	return err == nil
}

// answers reports whether the domain answers.
func (w *World) answers() bool {
	id := nextRequest.Add(1)
	ch := make(chan reply, 1)
	w.outmu.Lock()
	w.waiting[id] = ch
	w.outmu.Unlock()
	defer func() {
		w.outmu.Lock()
		delete(w.waiting, id)
		w.outmu.Unlock()
	}()
	w.send(request{id: id, op: read, key: probe})
	select {
	case <-ch:
		return true
	case <-time.After(patience):
		return false
	}
}
