package xlft_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
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
	"xlft/xlft/config"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/internal/store"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// The simulation runs Session and Receiver unchanged on simulated hosts, under
// thousands of fault schedules, and checks the promises:
//
//	P1, P3, P4  at every step, by simxen.Outside
//	P2          at every takeover, by simxen.Outside
//	P5          at the end: the domain is alive and nothing it said is lost
//	P6          while it runs: "protected" is said only while it is true
//
// A seed determines the schedule; -sim.seed runs one schedule again.
var (
	simSeeds      = flag.Int("sim.seeds", 400, "how many fault schedules to run")
	simSeed       = flag.Uint64("sim.seed", 0, "run this schedule alone, with its log")
	simFaultKinds = flag.String("sim.faults", "", "numbers of the faults that there are, by commas; all if empty")
)

// Durations of the simulation: short, so that much happens in few steps.
const (
	simEpoch   = 60 * time.Millisecond
	simSilence = 250 * time.Millisecond
	simAck     = time.Second
	simSuspend = 500 * time.Millisecond
	simFaults  = 2500 * time.Millisecond // faults happen until then
	simHeal    = 1500 * time.Millisecond // then nothing is faulty for so long
)

// A sim is one run: hosts A (with the domain) and B, and what happens to them.
type sim struct {
	t       testing.TB
	v       variant
	rng     *rand.Rand
	outside *simxen.Outside
	net     *simxen.Net
	a, b    *simxen.Host
	arbiter *simxen.Arbiter
	domain  *simxen.Domain
	// The hosts' records of who owns the domain.
	recordsA, recordsB store.Dir

	pacing xlft.Pacing
	moods  *rand.Rand // of an operator who changes the pacing again and again; nil: nobody does
	shared bool       // the disk is shared storage, and the hosts fence each other
	ledger bool       // the product's Ledger decides, with a simulated register
	log    *zap.Logger
	wg     sync.WaitGroup

	mu       sync.Mutex
	primary  *simxen.Process
	session  *primary.Session
	result   error
	over     bool // the session has ended by itself or by an operator
	backup   *simxen.Process
	receiver *backup.Receiver
	received chan struct{} // closed when the receiver's Serve has returned
	finished bool          // no process is started again
	troubled bool          // there was a fault

	fullA, fullB atomic.Bool // the hosts' file systems have no room for records
	badTakeover  atomic.Bool // the next takeover fails
	domainOver   atomic.Bool // the domain ended by itself
	stopped      atomic.Bool // an operator ended the protection

	story    []string
	unhappy  time.Time // since when the primary wrongly says "protected"
	fresh    time.Time // when the primary last said "protected" with a new checkpoint
	epoch    uint64    // epoch of that checkpoint
	faults   int       // faults so far; a switch-over is not a fault
	switched bool      // a switch-over was asked for
}

const simDomain = "web1"

func newSim(t testing.TB, seed uint64, v variant, log *zap.Logger) *sim {
	s := &sim{t: t, v: v, rng: rand.New(rand.NewPCG(seed, 0)), outside: simxen.NewOutside(seed), log: log, arbiter: simxen.NewArbiter()}
	s.recordsA, s.recordsB = records(t), records(t)
	s.net = simxen.NewNet(time.Duration(1+s.rng.IntN(8)) * time.Millisecond)
	s.a, s.b = simxen.NewHost(s.outside, s.net, "A"), simxen.NewHost(s.outside, s.net, "B")
	if v.storage == shared || v.storage == bySeed && seed%2 == 1 {
		s.shared = true
		simxen.Share(s.a, s.b)
	}
	s.ledger = !s.shared && seed%8 >= 4
	if seed%3 == 0 {
		s.a.Slow = s.slowness()
	}
	if seed%5 < 2 {
		s.b.Slow = s.slowness()
	}
	s.b.DurableAck, s.b.ReplayTwice = !s.shared && seed%4 == 0, v.twice
	s.outside.NoFlushes = v.noFlush
	s.domain = s.a.Boot(simDomain, cmp.Or(v.pages, 12))
	s.pacing = s.paces(seed)
	if s.v.memory == 0 {
		s.v.memory = 1 << 20
		if seed%6 == 1 {
			s.v.memory = 40 << 10 // the domain writes more while a checkpoint is on its way
		}
	}
	if v.leak {
		s.domain.LeakTo(s.b.Disk())
	}
	return s
}

// slowness returns a host's Slow: usually short, sometimes longer than the
// silence after which the host is suspected.
func (s *sim) slowness() time.Duration {
	most := []int{40, 40, 300}[s.rng.IntN(3)]
	return time.Duration(1+s.rng.IntN(most)) * time.Millisecond
}

// ackTimeout is long enough for slow hosts.
func (s *sim) ackTimeout() time.Duration { return simAck + 3*(s.a.Slow+s.b.Slow) }

// arb returns a process's arbiter: the simulated one, the product's Ledger, or for
// shared storage the real fence with a simulated agent.
func (s *sim) arb(p *simxen.Process, to string) xlft.Arbiter {
	a := p.Arbiter(s.arbiter)
	ask := arbiter.Asker{Timeout: 2 * simSilence, HeadStart: simSilence, Log: s.log.Named("arbiter"), Ask: func(ctx context.Context, _ string, q wire.OwnerQuery) (r wire.OwnerResult, err error) {
		err = wire.Ask(ctx, p.Dial(to), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r)
		return r, err
	}}
	if s.ledger {
		a = p.Claims(ledger(p, s.arbiter, ask))
	}
	if s.shared {
		peers := map[string]config.Peer{}
		for _, h := range []*simxen.Host{s.a, s.b} {
			peers[h.Name] = config.Peer{Name: h.Name, Fence: &config.Fence{Levels: [][]config.FenceAgent{{{Options: map[string]string{"plug": h.Name}}}}}}
		}
		a = p.Claims(&arbiter.Fence{
			Peers: peers, Agent: p.FenceAgent(s.arbiter, s.a, s.b), Asker: ask,
		})
	}
	if s.v.arbiter != nil {
		return s.v.arbiter(a)
	}
	return a
}

// protect starts a protector on A, as systemd does after one was killed.
func (s *sim) protect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.a.Down() || s.primary != nil && !s.primary.Dead() {
		return
	}
	p := s.a.Spawn()
	own := &simxen.Disks{P: p, Domain: s.domain, To: "B"}
	gates := xlft.Gates{Net: p.Gate(s.domain), Disks: own}
	events := eventsOf(gates.Net)
	if s.v.events != nil {
		events = s.v.events(events)
	}
	if s.v.net != nil {
		gates.Net = s.v.net(gates.Net)
	}
	if s.pacing.Mode == xlft.ModeStrict && s.moods == nil {
		gates.Net = standing{gates.Net, s.domain, s.outside, new(atomic.Uint64)}
	}
	if s.v.disks != nil {
		gates.Disks = s.v.disks(own)
	}
	guest, dial := p.Guest(s.domain), p.Dial("B")
	if s.v.guest != nil {
		guest = s.v.guest(guest)
	}
	if s.v.dial != nil {
		dial = s.v.dial(dial)
	}
	silence, ack := simSilence, s.ackTimeout()
	if s.v.patience > 0 {
		silence = s.v.patience
	}
	if s.v.noLimit {
		ack = time.Hour
	}
	var kept xlft.Store = &roomStore{p.Store(s.recordsA), &s.fullA}
	if s.v.store != nil {
		kept = s.v.store(kept)
	}
	session := &primary.Session{
		Domain: simDomain, Software: "sim", Instance: "A/1",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), XenVersion: "4.17", MaxMemKiB: 48, Disks: s.domain.OfferedDisks()},
		Settings: primary.Settings{
			Pacing: s.pacing, FailureTimeout: silence, AckTimeout: ack,
			SuspendTimeout: simSuspend, RetryDelay: 100 * time.Millisecond, RetryMax: 200 * time.Millisecond, SpoolLimit: s.v.memory, PageCache: 8 * simxen.PageSize,
		},
		Guest: guest, Gates: gates, Events: events, Arbiter: s.arb(p, "B"), Dial: dial, Peer: "B", Store: kept,
		Log: s.log.Named("A"),
	}
	s.primary, s.session, s.over = p, session, false
	s.outside.Protector("A", simDomain, func() bool { return !p.Dead() && session.Protected() })
	s.wg.Go(func() {
		err := session.Run(p.Context())
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.session == session && !p.Dead() {
			s.over, s.result = true, err
		}
	})
}

// receive starts a receiver on B, after the previous one has ended.
func (s *sim) receive() {
	s.mu.Lock()
	before := s.received
	s.mu.Unlock()
	if before != nil {
		<-before
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.b.Down() || s.backup != nil && s.backup.Context().Err() == nil {
		return
	}
	p := s.b.Spawn()
	restorer := restoring{&simxen.Restorer{P: p, Torn: s.v.torn, Slow: s.v.slow}, func(ctx context.Context, r backup.Replica) error {
		if s.badTakeover.Swap(false) {
			return errors.New("a hotplug script failed")
		}
		return r.Activate(ctx)
	}}
	r := &backup.Receiver{
		Software: "sim", Restorer: restorer, Arbiter: s.arb(p, "A"), Store: &roomStore{p.Store(s.recordsB), &s.fullB},
		Log: s.log.Named("B"), PeerName: func(c net.Conn) string { return c.(*simxen.Conn).From() },
		RetryDelay: 100 * time.Millisecond, EpochLimit: max(1<<20, uint64(s.v.memory)), PageCache: 8 * simxen.PageSize, Disks: &simxen.DiskHost{P: p, Broken: s.v.copy},
	}
	ended := make(chan struct{})
	r.Ask = func(ctx context.Context, peer string, q wire.OwnerQuery) (res wire.OwnerResult, err error) {
		err = wire.Ask(ctx, p.Dial(peer), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &res)
		return res, err
	}
	s.backup, s.receiver, s.received = p, r, ended
	l := p.Listen()
	s.wg.Go(func() {
		defer close(ended)
		r.Serve(p.Context(), l)
	})
}

// now returns the present processes and session.
func (s *sim) now() (primary, backup *simxen.Process, session *primary.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.primary, s.backup, s.session
}

func (s *sim) tell(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	s.log.Info("--- " + line)
	s.story = append(s.story, line)
}

// run plays a schedule to its end.
func (s *sim) run() {
	begun := time.Now()
	s.receive()
	s.protect()
	stopLooking := make(chan struct{})
	s.wg.Go(func() { s.look(stopLooking) })
	if s.b.DurableAck {
		s.wg.Go(func() { s.cutPower(stopLooking) })
	}
	if s.moods != nil {
		s.wg.Go(func() { s.changeMoods(stopLooking) })
	}

	faults := 1
	if s.rng.IntN(3) > 0 {
		faults += s.rng.IntN(4)
	}
	for range faults {
		time.Sleep(time.Duration(s.rng.Int64N(int64(simFaults) / int64(faults))))
		s.fault(begun)
	}
	time.Sleep(time.Until(begun.Add(simFaults)))

	// All faults end, except that power does not come back.
	s.net.Mend()
	for _, h := range []string{"A", "B"} {
		s.arbiter.Cut(h, false)
		s.arbiter.Lossy(h, false)
	}
	s.domain.Deafen(false)
	s.b.Disk().Fail(false)
	s.fullA.Store(false)
	s.fullB.Store(false)
	if _, backup, _ := s.now(); backup.Context().Err() != nil {
		s.receive()
	}
	s.protect()
	time.Sleep(simHeal + 10*(s.a.Slow+s.b.Slow))
	close(stopLooking)
	s.judge()
	s.end()
}

// look checks P6: the primary says "protected" only while the backup could take
// over, apart from the time that it takes to notice silence.
func (s *sim) look(stop <-chan struct{}) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		// Without the lock: Status may wait for a call of the gate, and the clock
		// would stand still if this goroutine held a mutex that another waits for.
		s.mu.Lock()
		protector, session, receiving, receiver := s.primary, s.session, s.backup, s.receiver
		s.mu.Unlock()
		said := false
		if !s.a.Down() && !protector.Dead() {
			st := session.Status()
			said = st.Protected
			s.hurry(said)
			if !said || st.Epoch != s.epoch {
				s.epoch, s.fresh = st.Epoch, time.Now()
			}
		}
		// The limits of suspend and ack bound the age of the newest checkpoint.
		if age := time.Since(s.fresh); said && age > simSuspend+s.ackTimeout()+2*simEpochMax+3*s.a.Slow {
			s.outside.Violate("P6", "\"protected\" is said, and the newest checkpoint is %v old", age)
		}
		able := false
		if !s.b.Down() && !receiving.Dead() {
			for _, st := range receiver.Replicas() {
				able = able || st.State == backup.Ready || st.State == backup.Claiming || st.State == backup.TakingOver
			}
			if d := s.b.Domain(simDomain); d != nil && d.Runs() {
				able = true // a switch-over has just ended
			}
		}
		switch {
		case !said || able:
			s.unhappy = time.Time{}
		case s.unhappy.IsZero():
			s.unhappy = time.Now()
		case time.Since(s.unhappy) > 2*simSilence+3*s.a.Slow: // A finishes its present call first
			s.outside.Violate("P6", "\"protected\" is said, but nobody could take over, for %v", time.Since(s.unhappy))
		}
	}
}

// cutPower checks P2 for a backup with durable_ack: whenever the power is cut,
// what is left of the backup's disk can be promoted.
func (s *sim) cutPower(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(s.outside.Rand() % uint64(4*simEpoch))):
		}
		s.b.CheckPromoted()
	}
}

// judge checks P5 at the end of a run, when all faults have ended.
func (s *sim) judge() {
	s.mu.Lock()
	over, result := s.over, s.result
	s.mu.Unlock()
	if s.domainOver.Load() {
		// That it ended is noticed wherever the protection is by then.
		if runs(s.b) && s.outside.Takeovers == 0 {
			s.outside.Violate("P5", "the domain ended, and runs on B")
		}
		return
	}
	running := runs(s.a, s.b)
	// A host that lost its power after it had won the domain is a second failure.
	// One failure never costs the domain.
	if !running && s.faults <= 1 && !s.a.Down() && !s.unsure() {
		s.outside.Violate("P5", "one failure (%s) and the domain runs nowhere; session over %v: %v", strings.Join(s.story, "; "), over, result)
	}
	// (An operator who ended the protection may not have got a new one in time.)
	if !running && s.faults <= 1 && s.a.Down() && s.b.Domain(simDomain) == nil && s.outside.Takeovers == 0 && s.wasReady() && !s.stopped.Load() {
		s.outside.Violate("P5", "power cut at A after it was protected, and B does not run the domain")
	}
	if running && runs(s.a) && !over && !s.a.Down() && !s.b.Down() {
		// The hosts have connected again and synced by themselves.
		st := s.session.Status()
		if !st.Protected && st.State != primary.Syncing && !errors.Is(s.lastBoth(st), primary.ErrBothRun) && result == nil {
			s.outside.Violate("P5", "everything works again, but the domain is %v: %s", st.State, st.LastError)
		}
	}
}

// runs reports whether the domain runs on one of the hosts. It waits long
// enough for a pause or a takeover on slow hosts to end. (In the mode strict it may
// take no more than one step between two pauses.)
func runs(hosts ...*simxen.Host) bool {
	steps := map[*simxen.Domain]uint64{}
	for range 200 {
		for _, h := range hosts {
			d := h.Domain(simDomain)
			if d == nil {
				continue
			}
			if was, seen := steps[d]; d.Runs() || seen && d.Steps() > was {
				return true
			}
			steps[d] = d.Steps()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// unsure reports whether the domain was handed to a backup that has gone since.
// The domain may have run there, so the copy on the primary waits for an
// operator.
func (s *sim) unsure() bool {
	st := s.session.Status().State
	return s.switched && s.b.Down() && (s.over || st == primary.Arbitrating || st == primary.Blocked)
}

func (s *sim) wasReady() bool { return s.session.Status().Checkpoints > 0 }

func (s *sim) lastBoth(st primary.Status) error {
	if strings.Contains(st.LastError, primary.ErrBothRun.Error()) {
		return primary.ErrBothRun
	}
	return nil
}

// end stops everything in order. If protection has ended it checks that all of
// the domain's output was released.
func (s *sim) end() {
	s.mu.Lock()
	s.finished = true
	s.mu.Unlock()
	if !s.a.Down() && !s.primary.Dead() {
		s.primary.Terminate()
	}
	done := make(chan struct{})
	go func() {
		for {
			s.mu.Lock()
			over := s.over || s.primary.Dead()
			s.mu.Unlock()
			if over {
				close(done)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		if !s.unsure() {
			s.outside.Violate("P5", "the session does not end when asked (%v)", s.session.Status().State)
		}
		s.primary.Kill()
		<-done
	}
	if d := s.a.Domain(simDomain); d != nil && d.Runs() && s.over && s.result == nil {
		d.Freeze()
		time.Sleep(50 * time.Millisecond)
		if n := d.Undelivered(); n > 0 && s.outside.Takeovers == 0 {
			s.outside.Violate("P5", "protection has ended and %d packets are lost or still held", n)
		}
	}
	s.backup.Terminate()
	time.Sleep(2 * time.Second)
	s.primary.Kill()
	s.backup.Kill()
	s.a.Shutdown()
	s.b.Shutdown()
	s.wg.Wait()
}

// endWell ends the run and checks that no promise was broken.
func (s *sim) endWell() {
	s.t.Helper()
	s.end()
	for _, v := range s.outside.Violations() {
		s.t.Error(v)
	}
}

func (s *sim) awaitProtected() {
	s.t.Helper()
	for waited := 0; !s.session.Status().Protected; waited++ {
		if waited == 100 {
			s.t.Errorf("not protected: %+v", s.session.Status())
			return
		}
		time.Sleep(simEpoch)
	}
}

// runSim plays one schedule and returns the broken promises and the story.
func runSim(t *testing.T, seed uint64, v variant, log *zap.Logger) (violations, story []string, outside *simxen.Outside) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, v, log)
		s.run()
		violations, story, outside = s.outside.Violations(), s.story, s.outside
	})
	return
}

func TestSimulation(t *testing.T) {
	var v variant
	for f := range strings.SplitSeq(*simFaultKinds, ",") {
		if n, err := strconv.Atoi(f); err == nil {
			v.faults = append(v.faults, n)
		}
	}
	if *simSeed != 0 {
		log := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.Lock(os.Stderr), zap.DebugLevel))
		v, story, outside := runSim(t, *simSeed, v, log)
		t.Logf("seed %d: %s\n%d takeovers, %d packets heard", *simSeed, strings.Join(story, "\n  "), outside.Takeovers, outside.Delivered)
		for _, x := range v {
			t.Error(x)
		}
		return
	}
	first := uint64(time.Now().UnixNano())%1e9 + 1
	t.Logf("%d schedules from seed %d on", *simSeeds, first)
	var next, takeovers, promoted, heard, bad atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker", worker), func(t *testing.T) {
				t.Parallel()
				for {
					i := next.Add(1) - 1
					if i >= int64(*simSeeds) || bad.Load() > 5 {
						return
					}
					seed := first + uint64(i)
					v, story, outside := runSim(t, seed, v, zap.NewNop())
					takeovers.Add(int64(outside.Takeovers))
					promoted.Add(int64(outside.Promoted))
					heard.Add(int64(outside.Delivered))
					for _, x := range v {
						bad.Add(1)
						t.Errorf("seed %d: %s\n  story:\n  %s", seed, x, strings.Join(story, "\n  "))
					}
				}
			})
		}
	})
	t.Logf("%d schedules, %d violations; %d takeovers, %d looks at what a power cut leaves, %d packets heard outside",
		min(next.Load(), int64(*simSeeds)), bad.Load(), takeovers.Load(), promoted.Load(), heard.Load())
}

// records returns a directory for a host's records: in memory if possible,
// since every schedule writes some.
func records(tb testing.TB) store.Dir {
	tb.Helper()
	base := "/dev/shm"
	if st, err := os.Stat(base); err != nil || !st.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "xlft-records-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return store.Dir(dir)
}
