package xlft_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/internal/steward"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// The wide world: three hosts whose power comes back, three domains that are protected in several directions, and
// an operator who protects each again after a takeover. A schedule has phases: something fails, then nothing does,
// and all of it has to work again by itself before the next phase begins.

var (
	worldSeeds = flag.Int("world.seeds", 12, "how many schedules of the wide world to run")
	worldSeed  = flag.Uint64("world.seed", 0, "run this schedule of the wide world alone, with its log")
)

const (
	worldPhases = 6
	worldHeals  = time.Minute // after the end of all faults of a phase
)

// A protection is a domain that is protected, or was, from one host.
type protection struct {
	h       *simxen.Host
	d       *simxen.Domain
	peer    string
	process *simxen.Process
	session *primary.Session
	ended   chan struct{}
	result  error
	since   time.Time
}

type world struct {
	t       testing.TB
	kind    string // of the arbiters
	rng     *rand.Rand
	outside *simxen.Outside
	net     *simxen.Net
	cas     *simxen.Arbiter
	hosts   []*simxen.Host
	records map[*simxen.Host]store.Dir
	full    map[*simxen.Host]*atomic.Bool
	bad     map[*simxen.Host]*atomic.Bool // the next takeover fails
	refuses map[*simxen.Host]*refusing
	names   []string
	log     *zap.Logger
	wg      sync.WaitGroup
	story   []string

	// The operator's alone.
	choices     *rand.Rand
	protections []*protection
	receivers   map[*simxen.Host]*receiving
	runs        map[*simxen.Domain]int // the number of each domain's run: its domid
	moved       map[*simxen.Domain]moved
	paused      paused
	stewards    map[*simxen.Host]*steward.Steward // nil: the operator starts protections
	stop, done  chan struct{}
	orders      chan func()
}

// receiving is a receiver on a host.
type receiving struct {
	process *simxen.Process
	*backup.Receiver
	ended chan struct{}
}

func newWorld(t testing.TB, seed uint64, log *zap.Logger) *world {
	w := &world{
		t: t, kind: []string{"cas", "fence", "none", "ledger"}[seed%4], rng: rand.New(rand.NewPCG(seed, 2)), choices: rand.New(rand.NewPCG(seed, 3)), outside: simxen.NewOutside(seed),
		net: simxen.NewNet(2 * time.Millisecond), cas: simxen.NewArbiter(), names: []string{"web", "db", "mail"}, log: log,
		records: map[*simxen.Host]store.Dir{}, full: map[*simxen.Host]*atomic.Bool{}, bad: map[*simxen.Host]*atomic.Bool{},
		refuses: map[*simxen.Host]*refusing{}, paused: paused{},
		receivers: map[*simxen.Host]*receiving{}, runs: map[*simxen.Domain]int{}, moved: map[*simxen.Domain]moved{},
		stop: make(chan struct{}), done: make(chan struct{}), orders: make(chan func()),
	}
	w.outside.NoDisks = true
	if seed/3%2 == 0 {
		w.stewards = map[*simxen.Host]*steward.Steward{}
	}
	for _, name := range []string{"A", "B", "C"} {
		h := simxen.NewHost(w.outside, w.net, name)
		w.hosts = append(w.hosts, h)
		w.records[h], w.full[h], w.bad[h], w.refuses[h] = records(t), new(atomic.Bool), new(atomic.Bool), new(refusing)
	}
	for i, name := range w.names { // two one way, one the other
		w.hosts[i/2].Boot(name, 8)
	}
	return w
}

func (w *world) receive(h *simxen.Host) {
	p := h.Spawn()
	restorer := restoring{refusingRestorer{&simxen.Restorer{P: p}, w.refuses[h]}, func(ctx context.Context, r backup.Replica) error {
		if w.bad[h].Swap(false) {
			return errors.New("a hotplug script failed")
		}
		return r.Activate(ctx)
	}}
	r := &receiving{process: p, ended: make(chan struct{}), Receiver: &backup.Receiver{
		Software: "sim", Restorer: restorer, Arbiter: arbiterOf(w.kind, p, w.cas, w.hosts...), Store: refusingStore{&roomStore{p.Store(w.records[h]), w.full[h]}, w.refuses[h]}, Log: w.log.Named(h.Name),
		PeerName:   func(c net.Conn) string { return c.(*simxen.Conn).From() },
		RetryDelay: 100 * time.Millisecond, EpochLimit: 1 << 20, PageCache: 8 * simxen.PageSize,
	}}
	w.receivers[h] = r
	l := p.Listen()
	w.wg.Go(func() {
		defer close(r.ended)
		r.Serve(p.Context(), l)
	})
}

func (w *world) protect(h *simxen.Host, d *simxen.Domain, peer string) {
	p := h.Spawn()
	if w.runs[d] == 0 {
		w.runs[d] = len(w.runs) + 1
	}
	gate := p.Gate(d)
	s := &primary.Session{
		Events: eventsOf(gate), Domain: d.Name, Instance: fmt.Sprintf("%s/%d", h.Name, w.runs[d]), Software: "sim", Offer: wire.Offer{UUID: d.Name, Config: []byte("{}")},
		Guest: refusingGuest{p.Guest(d), w.refuses[h]}, Gates: xlft.Gates{Net: refusingGate{gate, w.refuses[h]}}, Arbiter: arbiterOf(w.kind, p, w.cas, w.hosts...), Dial: p.Dial(peer), Peer: peer,
		DialPeer: func(name string) wire.Dialer { return p.Dial(name) }, Store: &roomStore{p.Store(w.records[h]), w.full[h]}, Log: w.log.Named(h.Name + "/" + d.Name),
		Settings: primary.Settings{
			Pacing: w.paces(d.Name), FailureTimeout: simSilence, AckTimeout: simAck, SuspendTimeout: simSuspend,
			RetryDelay: 100 * time.Millisecond, RetryMax: time.Second, SpoolLimit: 1 << 20, PageCache: 8 * simxen.PageSize, MoveAfter: w.moveAfter(),
		},
		Hung: func(error) { p.Kill() },
	}
	x := &protection{h: h, d: d, peer: peer, process: p, session: s, ended: make(chan struct{}), since: time.Now()}
	w.protections = append(w.protections, x)
	w.outside.Protector(h.Name, d.Name, func() bool { return !p.Dead() && s.Protected() })
	w.wg.Go(func() {
		defer close(x.ended)
		x.result = s.Run(p.Context())
	})
}

// paces returns how a domain's checkpoints are taken: in each mode one.
func (w *world) paces(name string) xlft.Pacing {
	modes := []xlft.Mode{xlft.ModeInterval, xlft.ModeEvent, xlft.ModeStrict}
	return xlft.Pacing{Mode: modes[slices.Index(w.names, name)], EpochMin: 5 * time.Millisecond, EpochMax: simEpoch, WindowMax: simEpoch, RunShare: 0.5}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// of returns the newest protection of a domain on a host.
func (w *world) of(h *simxen.Host, d *simxen.Domain) *protection {
	for i := len(w.protections) - 1; i >= 0; i-- {
		if x := w.protections[i]; x.h == h && x.d == d {
			return x
		}
	}
	return nil
}

// operate is systemd on all hosts, and the operator: daemons that died are started again, and a domain that runs
// without protection is protected.
func (w *world) operate() {
	defer close(w.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case f := <-w.orders:
			f()
			continue
		case <-w.stop:
			return
		case <-t.C:
		}
		if n%10 == 0 {
			w.look(ctx)
		}
		for _, h := range w.hosts {
			if h.Down() {
				continue
			}
			if r := w.receivers[h]; r == nil || r.process.Context().Err() != nil && (r.process.Dead() || isClosed(r.ended)) {
				w.receive(h)
			}
			for _, name := range w.names {
				if d := h.Domain(name); d != nil && !d.Gone() {
					w.care(h, d)
				}
			}
		}
	}
}

// care starts the protector of a domain that a host has.
func (w *world) care(h *simxen.Host, d *simxen.Domain) {
	x := w.of(h, d)
	switch {
	case x != nil && x.process.Dead(): // systemd's
		w.protect(h, d, x.peer)
	case x != nil && !isClosed(x.ended), x != nil && time.Since(x.since) < time.Second:
	case x != nil && w.waits(x): // it tries again, as xlft protect does
		w.protect(h, d, x.peer)
	case w.stewards == nil && w.lives(d): // the operator's
		var able []string
		for _, other := range w.hosts {
			if other != h && !other.Down() {
				able = append(able, other.Name)
			}
		}
		if len(able) > 0 {
			w.protect(h, d, able[w.choices.IntN(len(able))])
		}
	}
}

// waits reports whether a protector that could not begin tries again.
func (w *world) waits(x *protection) bool {
	if o, _ := x.session.Result(); o != "" {
		return false
	}
	o, err := w.records[x.h].Load(x.d.Name)
	return err != nil || o.Left() && o.Instance == x.session.Instance
}

// moved is how far a domain was at its last known step.
type moved struct {
	steps uint64
	at    time.Time
}

// lives reports whether a domain runs. One in the mode strict is suspended for the
// checkpoint of nearly each of its steps, and may be so at every look.
func (w *world) lives(d *simxen.Domain) bool {
	if n := d.Steps(); n > w.moved[d].steps {
		w.moved[d] = moved{n, time.Now()}
	}
	return d.Runs() || time.Since(w.moved[d].at) < time.Second
}

// order has the operator do something.
func (w *world) order(f func()) {
	ended := make(chan struct{})
	w.orders <- func() { defer close(ended); f() }
	<-ended
}

// home returns the host that runs a domain, and its protection; nil if there is not exactly one.
func (w *world) home(name string) (h *simxen.Host, x *protection) {
	for _, at := range w.hosts {
		if d := at.Domain(name); d != nil && w.lives(d) {
			if h != nil {
				return nil, nil
			}
			h, x = at, w.of(at, d)
		}
	}
	return h, x
}

// splits reports whether h alone knows that it has taken a domain over: a host that holds the older copy would, with the
// arbiter none, run the domain too if h lost its power.
func (w *world) splits(h *simxen.Host) bool {
	return slices.ContainsFunc(w.names, func(name string) bool {
		d := h.Domain(name)
		return d != nil && w.lives(d) && slices.ContainsFunc(w.hosts, func(o *simxen.Host) bool {
			return o != h && o.Domain(name) != nil && !o.Domain(name).Gone()
		})
	})
}

// whole reports what is not as it should be; "" if every domain runs once, protected.
func (w *world) whole() (lacks string) {
	w.order(func() {
		for _, name := range w.names {
			h, x := w.home(name)
			switch {
			case h == nil:
				lacks = fmt.Sprintf("%s does not run on one host", name)
			case x == nil || x.process.Dead() || isClosed(x.ended) || !x.session.Status().Protected:
				lacks = fmt.Sprintf("%s is not protected", name)
				if x != nil {
					st := x.session.Status()
					lacks += fmt.Sprintf(" (%s to %s: %v, %s)", h.Name, x.peer, st.State, st.LastError)
				}
			}
		}
	})
	return lacks
}

// await waits until everything works.
func (w *world) await(d time.Duration) (lacks string) {
	for begun := time.Now(); time.Since(begun) < d; time.Sleep(250 * time.Millisecond) {
		if lacks = w.whole(); lacks == "" {
			return ""
		}
	}
	return lacks
}

func (w *world) run() {
	go w.operate()
	if lacks := w.await(worldHeals); lacks != "" {
		w.outside.Violate("P5", "at the beginning: %s", lacks)
		w.end()
		return
	}
	begun := time.Now()
	for phase := range worldPhases {
		faults := 1 + w.rng.IntN(2)
		for range faults {
			time.Sleep(time.Duration(w.rng.Int64N(int64(time.Second))))
			w.fault(begun)
		}
		time.Sleep(2 * time.Second)
		w.heal()
		lacks := w.await(worldHeals)
		if lacks != "" && faults > 1 {
			// Two failures may cost a domain: it is started anew where nothing of it is left.
			w.bootLost()
			lacks = w.await(worldHeals)
		}
		if lacks != "" {
			w.outside.Violate("P5", "phase %d, %d faults: everything works again, but %s", phase, faults, lacks)
		}
		if len(w.outside.Violations()) > 0 {
			break
		}
	}
	w.end()
}

func (w *world) tell(begun time.Time, format string, args ...any) {
	line := time.Since(begun).Round(time.Millisecond).String() + " " + fmt.Sprintf(format, args...)
	w.log.Info("--- " + line)
	w.story = append(w.story, line)
}

// fault does one thing to the world.
func (w *world) fault(begun time.Time) {
	h, name := w.hosts[w.rng.IntN(len(w.hosts))], w.names[w.rng.IntN(len(w.names))]
	other := w.hosts[w.rng.IntN(len(w.hosts))]
	kind, before := w.rng.IntN(18), w.rng.IntN(2) == 0
	refuse := 1 + w.rng.Int32N(refusals-1)
	w.order(func() {
		at, x := w.home(name)
		switch {
		case kind < 3 && w.kind == "none" && w.splits(h): // both hosts have run the domain then, as documented
		case kind < 3:
			w.tell(begun, "power cut at %s", h.Name)
			h.Crash()
		case kind == 3 && x != nil:
			w.tell(begun, "protector of %s at %s killed", name, at.Name)
			x.process.Kill()
		case kind == 4 && w.receivers[h] != nil:
			w.tell(begun, "receiver at %s killed", h.Name)
			w.receivers[h].process.Kill()
		case kind == 5 && w.receivers[h] != nil:
			w.tell(begun, "receiver at %s stopped in order", h.Name)
			w.receivers[h].process.Terminate()
		case kind == 6 && h != other && w.kind != "none": // which may split, as documented
			w.tell(begun, "network between %s and %s cut", h.Name, other.Name)
			w.net.CutPair(h.Name, other.Name, true)
		case kind == 7 && w.kind != "none":
			w.tell(begun, "nobody hears %s", h.Name)
			w.net.Mute(h.Name, true)
		case kind == 11 && x != nil:
			w.tell(begun, "protector of %s at %s killed at its next record, before it stands: %v", name, at.Name, before)
			x.process.KillAtSave(before, func() {})
		case kind == 12 && w.receivers[h] != nil:
			w.tell(begun, "receiver at %s killed at its next record, before it stands: %v", h.Name, before)
			w.receivers[h].process.KillAtSave(before, func() {})
		case kind == 8:
			w.tell(begun, "no room for %s's records", h.Name)
			w.full[h].Store(true)
		case kind == 9:
			w.tell(begun, "the next domain that %s takes over does not start", h.Name)
			w.bad[h].Store(true)
		case kind == 10 && x != nil:
			w.tell(begun, "protection of %s ended by an operator", name)
			x.process.Terminate()
		case kind == 13 && x != nil:
			w.tell(begun, "%s at %s paused by an operator", name, at.Name)
			w.paused.pause(x.d)
		case kind > 13 && kind < 17:
			w.tell(begun, "%s refuses %s", h.Name, refusalNames[refuse])
			w.refuses[h].what.Store(refuse)
		case x != nil:
			w.tell(begun, "switch-over of %s asked for", name)
			w.wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				x.session.Failover(ctx)
			})
		}
	})
}

// heal ends all faults.
func (w *world) heal() {
	w.order(func() {
		w.net.Mend()
		w.paused.unpause()
		for _, x := range w.protections {
			x.process.Spare()
		}
		for _, r := range w.receivers {
			r.process.Spare()
		}
		for _, h := range w.hosts {
			w.full[h].Store(false)
			w.bad[h].Store(false)
			w.refuses[h].what.Store(refusesNothing)
			if h.Down() {
				h.PowerOn()
			}
		}
	})
}

// bootLost starts domains that are nowhere any more.
func (w *world) bootLost() {
	w.order(func() {
	names:
		for i, name := range w.names {
			for _, h := range w.hosts {
				if d := h.Domain(name); d != nil && !d.Gone() {
					continue names
				}
				for _, r := range w.receivers[h].Replicas() {
					if r.Domain == name {
						continue names
					}
				}
			}
			w.log.Info("--- " + name + " was lost, and boots anew")
			w.hosts[i/2].Boot(name, 8)
		}
	})
}

func (w *world) end() {
	close(w.stop)
	<-w.done
	for _, x := range w.protections {
		x.process.Terminate()
	}
	time.Sleep(10 * time.Second)
	for _, x := range w.protections {
		x.process.Kill()
	}
	for _, r := range w.receivers {
		r.process.Terminate()
	}
	time.Sleep(5 * time.Second)
	for _, r := range w.receivers {
		r.process.Kill()
	}
	for _, h := range w.hosts {
		h.Shutdown()
	}
	w.wg.Wait()
}

func runWorld(t *testing.T, seed uint64, log *zap.Logger) (violations, story []string, o *simxen.Outside) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, log)
		w.run()
		violations, story, o = w.outside.Violations(), w.story, w.outside
	})
	return
}

func TestWorld(t *testing.T) {
	if *worldSeed != 0 {
		log := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.Lock(os.Stderr), zap.DebugLevel))
		v, story, o := runWorld(t, *worldSeed, log)
		t.Logf("%s\n%d takeovers, %d packets heard", strings.Join(story, "\n  "), o.Takeovers, o.Delivered)
		for _, x := range v {
			t.Error(x)
		}
		return
	}
	first := uint64(time.Now().UnixNano())%1e9 + 1
	t.Logf("%d schedules from seed %d on", *worldSeeds, first)
	var next, takeovers, heard atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker", worker), func(t *testing.T) {
				t.Parallel()
				for {
					n := next.Add(1) - 1
					if n >= int64(*worldSeeds) {
						return
					}
					seed := first + uint64(n)
					v, story, o := runWorld(t, seed, zap.NewNop())
					takeovers.Add(int64(o.Takeovers))
					heard.Add(int64(o.Delivered))
					for _, x := range v {
						// The story first: who prints the end of a long log alone sees the seed too.
						t.Errorf("%s\n  -world.seed=%d: %s", strings.Join(story, "\n  "), seed, x)
					}
				}
			})
		}
	})
	t.Logf("%d takeovers, %d packets heard", takeovers.Load(), heard.Load())
}
