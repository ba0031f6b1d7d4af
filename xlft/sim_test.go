package xlft_test

import (
	"bytes"
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

	"xlft/diskrepl"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// The simulation runs Session and Receiver as they are on simulated hosts,
// under thousands of fault schedules, and lets the world check the promises:
//
//	P1, P3, P4  at every step, by simxen.World
//	P2          at every takeover, by simxen.World
//	P5          at the end: the domain is alive and nothing it said is lost
//	P6          while it runs: "protected" is said only while it is true
//
// A seed gives the schedule; run one again with -sim.seed.
var (
	simSeeds      = flag.Int("sim.seeds", 400, "how many fault schedules to run")
	simSeed       = flag.Uint64("sim.seed", 0, "run this schedule alone, with its log")
	simFaultKinds = flag.String("sim.faults", "", "numbers of the faults that there are, by commas; all if empty")
)

// Times of the simulation: short, so that much happens in few steps.
const (
	simEpoch   = 60 * time.Millisecond
	simSilence = 250 * time.Millisecond
	simAck     = time.Second
	simSuspend = 500 * time.Millisecond
	simFaults  = 2500 * time.Millisecond // faults happen until then
	simHeal    = 1500 * time.Millisecond // then everything works again, so long
)

// A variant is xlft with one of its promises broken on purpose.
type variant struct {
	output   func(xlft.Output) xlft.Output
	arbiter  func(xlft.Arbiter) xlft.Arbiter
	torn     bool          // the replica leaves out a part of each checkpoint
	patience time.Duration // silence the primary accepts, if not simSilence
	lateSeal time.Duration // the disk's epoch ends that much after the memory's
	copy     func(backup.DiskCopy) backup.DiskCopy
	leak     bool // the backup's disk has every write at once
	twice    bool // a journal is replayed twice, out of order
	storage  storage
	gates    func(simGates) xlft.Output
	noLimit  bool // on the time from a trigger to the ack
	guest    func(xlft.Guest) xlft.Guest
	dial     func(wire.Dialer) wire.Dialer
	faults   []int // that there are, if not all
}

// storage is the kind of the domain's disk.
type storage int

const (
	bySeed storage = iota
	mirrored
	shared
)

// simGates end the epochs of what a domain sends and of its disk.
type simGates struct {
	xlft.Output
	disks *simxen.Disks
	late  time.Duration
}

func (g simGates) Seal(e uint64) error {
	if err := g.Output.Seal(e); err != nil {
		return err
	}
	if g.late > 0 {
		time.AfterFunc(g.late, func() { g.disks.Seal(e) })
		return nil
	}
	return g.disks.Seal(e)
}

func (g simGates) Release(e uint64) error {
	return errors.Join(g.Output.Release(e), g.disks.Release(e))
}

func (g simGates) Drain(ctx context.Context) error {
	return errors.Join(g.Output.Drain(ctx), g.disks.Drain(ctx))
}

func (g simGates) Abandon() error { return errors.Join(g.Output.Abandon(), g.disks.Abandon()) }
func (g simGates) Discard() error { return errors.Join(g.Output.Discard(), g.disks.Discard()) }

// A sim is one run: hosts A (with the domain) and B, and what happens to them.
type sim struct {
	t       testing.TB
	v       variant
	rng     *rand.Rand
	w       *simxen.World
	net     *simxen.Net
	a, b    *simxen.Host
	arbiter *simxen.Arbiter
	domain  *simxen.Domain
	shared  bool // its disk is storage that both hosts see, and they fence each other
	log     *zap.Logger
	wg      sync.WaitGroup

	mu       sync.Mutex
	primary  *simxen.Process
	session  *primary.Session
	result   error
	over     bool // the session has ended by itself or by an operator
	backup   *simxen.Process
	receiver *backup.Receiver
	received chan struct{} // closed when the receiver's Serve has returned
	finished bool          // no process is started any more
	story    []string
	unhappy  time.Time // since when "protected" is said and not true
	fresh    time.Time // when "protected" was said last with a checkpoint that was new
	epoch    uint64    // of it
	faults   int       // that there were; a switch-over is none
	switched bool      // a switch-over was asked for
}

const simDomain = "web1"

func newSim(t testing.TB, seed uint64, v variant, log *zap.Logger) *sim {
	s := &sim{t: t, v: v, rng: rand.New(rand.NewPCG(seed, 0)), w: simxen.NewWorld(seed), log: log, arbiter: simxen.NewArbiter()}
	s.net = simxen.NewNet(time.Duration(1+s.rng.IntN(8)) * time.Millisecond)
	s.a, s.b = simxen.NewHost(s.w, s.net, "A"), simxen.NewHost(s.w, s.net, "B")
	if v.storage == shared || v.storage == bySeed && seed%2 == 1 {
		s.shared = true
		simxen.Share(s.a, s.b)
	}
	if seed%3 == 0 {
		s.a.Slow = s.slowness()
	}
	if seed%5 < 2 {
		s.b.Slow = s.slowness()
	}
	s.b.DurableAck, s.b.ReplayTwice = !s.shared && seed%4 == 0, v.twice
	s.domain = s.a.Boot(simDomain, 12)
	if v.leak {
		s.domain.LeakTo(s.b.Disk())
	}
	return s
}

// slowness is what things take at most on a host: often little, at times longer
// than the silence after which it is suspected.
func (s *sim) slowness() time.Duration {
	most := []int{40, 40, 300}[s.rng.IntN(3)]
	return time.Duration(1+s.rng.IntN(most)) * time.Millisecond
}

// ackTimeout is one that slow hosts keep to.
func (s *sim) ackTimeout() time.Duration { return simAck + 3*(s.a.Slow+s.b.Slow) }

func (s *sim) arb(p *simxen.Process) xlft.Arbiter {
	a := p.Arbiter(s.arbiter)
	if s.shared {
		a = p.Fence(s.arbiter, s.a, s.b)
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
	disks := &simxen.Disks{P: p, Domain: s.domain, To: "B"}
	gates := simGates{p.Output(s.domain), disks, s.v.lateSeal}
	out := xlft.Output(gates)
	if s.v.gates != nil {
		out = s.v.gates(gates)
	}
	if s.v.output != nil {
		out = s.v.output(out)
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
	session := &primary.Session{
		Domain: simDomain, Software: "sim", Instance: "A/1",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), XenVersion: "4.17", MaxMemKiB: 48, Disks: s.domain.OfferedDisks()},
		Settings: primary.Settings{
			EpochMax: simEpoch, DirtyMax: 9, FailureTimeout: silence, AckTimeout: ack,
			SuspendTimeout: simSuspend, RetryDelay: 100 * time.Millisecond, SpoolLimit: 1 << 20,
		},
		Guest: guest, Output: out, Disks: disks, Arbiter: s.arb(p), Dial: dial, Peer: "B", Store: p.Store(),
		Log: s.log.Named("A"),
	}
	s.primary, s.session, s.over = p, session, false
	s.wg.Go(func() {
		err := session.Run(p.Context())
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.session == session && !p.Dead() {
			s.over, s.result = true, err
		}
	})
}

// receive starts a receiver on B, once the one before has ended.
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
	r := &backup.Receiver{
		Software: "sim", Restorer: &simxen.Restorer{P: p, Torn: s.v.torn}, Arbiter: s.arb(p), Store: p.Store(),
		Log: s.log.Named("B"), PeerName: func(c net.Conn) string { return c.(*simxen.Conn).From() },
		RetryDelay: 100 * time.Millisecond, EpochLimit: 1 << 20, Disks: &simxen.DiskHost{P: p, Broken: s.v.copy},
	}
	ended := make(chan struct{})
	s.backup, s.receiver, s.received = p, r, ended
	l := p.Listen()
	s.wg.Go(func() {
		defer close(ended)
		r.Serve(p.Context(), l)
	})
}

// now returns what runs at present.
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

	faults := 1
	if s.rng.IntN(3) > 0 {
		faults += s.rng.IntN(4)
	}
	for range faults {
		time.Sleep(time.Duration(s.rng.Int64N(int64(simFaults) / int64(faults))))
		s.fault(begun)
	}
	time.Sleep(time.Until(begun.Add(simFaults)))

	// Everything that can be mended is mended; power does not come back.
	s.net.Mend()
	for _, h := range []string{"A", "B"} {
		s.arbiter.Cut(h, false)
		s.arbiter.Lossy(h, false)
	}
	s.domain.Deafen(false)
	s.b.Disk().Fail(false)
	if _, backup, _ := s.now(); backup.Context().Err() != nil {
		s.receive()
	}
	s.protect()
	time.Sleep(simHeal)
	close(stopLooking)
	s.judge()
	s.end()
}

// Some of the faults.
const (
	powerCutA    = 0
	powerCutB    = 2
	receiverStop = 6
	switchOver   = 12 // is none
	killAtSaveA  = 18
	killAtSaveB  = 19
)

func (s *sim) fault(begun time.Time) {
	at := time.Since(begun).Round(time.Millisecond)
	after := func(f func()) {
		d := time.Duration(s.w.Rand() % uint64(900*time.Millisecond))
		s.wg.Go(func() { time.Sleep(d); f() })
	}
	if s.a.Down() && s.b.Down() {
		return
	}
	primary, backup, session := s.now()
	kind := s.rng.IntN(20)
	if n := len(s.v.faults); n > 0 {
		kind = s.v.faults[s.rng.IntN(n)]
	}
	if kind != switchOver {
		s.faults++
	}
	switch kind {
	case powerCutA, 1:
		s.tell("%v power cut at A", at)
		s.a.Crash()
	case powerCutB:
		s.tell("%v power cut at B", at)
		s.b.Crash()
	case 3, 4:
		s.tell("%v protector killed", at)
		primary.Kill()
		after(s.protect)
	case 5:
		s.tell("%v receiver killed", at)
		backup.Kill()
		after(s.receive)
	case receiverStop:
		s.tell("%v receiver stopped in order", at)
		backup.Terminate()
		after(s.receive)
	case 7, 8:
		s.tell("%v network cut", at)
		s.net.Cut(true)
		after(func() { s.net.Cut(false) })
	case 9:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v arbiter out of %s's reach, network cut", at, h)
		s.arbiter.Cut(h, true)
		s.net.Cut(true)
		after(func() { s.arbiter.Cut(h, false) })
		after(func() { s.net.Cut(false) })
	case 10:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v the arbiter's answers to %s get lost, network cut", at, h)
		s.arbiter.Lossy(h, true)
		s.net.Cut(true)
		after(func() { s.arbiter.Lossy(h, false) })
		after(func() { s.net.Cut(false) })
	case 11:
		n := s.rng.Int64N(80 << 10)
		s.tell("%v next connection breaks after %d bytes, protector's network reset", at, n)
		s.net.TearAfter(n)
		s.net.Cut(true)
		after(func() { s.net.Cut(false) })
	case switchOver:
		s.tell("%v planned switch-over asked", at)
		s.switched = true
		s.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			session.Failover(ctx)
		})
	case 14:
		s.tell("%v a bit of a checkpoint flips on its way", at)
		s.net.FlipNext()
	case 13:
		s.tell("%v domain is deaf to suspend requests", at)
		s.domain.Deafen(true)
		after(func() { s.domain.Deafen(false) })
	case 15:
		h := []string{"A", "B"}[s.rng.IntN(2)]
		s.tell("%v nobody hears %s", at, h)
		s.net.Mute(h, true)
		after(func() { s.net.Mute(h, false) })
	case killAtSaveA, killAtSaveB:
		p, name, again := primary, "protector", s.protect
		if kind == killAtSaveB {
			p, name, again = backup, "receiver", s.receive
		}
		before := s.rng.IntN(2) == 0
		s.tell("%v %s killed at its next record, before it stands: %v", at, name, before)
		p.KillAtSave(before, func() { after(again) })
	case 17:
		s.tell("%v disk server killed", at)
		s.domain.RestartDisk()
	case 16:
		s.tell("%v the backup's disk fails", at)
		s.b.Disk().Fail(true)
		after(func() { s.b.Disk().Fail(false) })
	}
}

// look is P6: "protected" is said only while the backup could take over, but
// for the time that silence needs to be noticed.
func (s *sim) look(stop <-chan struct{}) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		s.mu.Lock()
		said := false
		if !s.a.Down() && !s.primary.Dead() {
			st := s.session.Status()
			said = st.Protected
			if !said || st.Epoch != s.epoch {
				s.epoch, s.fresh = st.Epoch, time.Now()
			}
		}
		// It gets as old as the limits of suspending and of the ack allow.
		if age := time.Since(s.fresh); said && age > simSuspend+s.ackTimeout()+2*simEpoch+3*s.a.Slow {
			s.w.Violate("P6", "\"protected\" is said, and the newest checkpoint is %v old", age)
		}
		able := false
		if !s.b.Down() && !s.backup.Dead() {
			for _, st := range s.receiver.Standbys() {
				able = able || st.State == backup.Ready.String() || st.State == backup.Claiming.String() || st.State == backup.TakingOver.String()
			}
			if d := s.b.Domain(simDomain); d != nil && d.Runs() {
				able = true // a switch-over has just been done
			}
		}
		switch {
		case !said || able:
			s.unhappy = time.Time{}
		case s.unhappy.IsZero():
			s.unhappy = time.Now()
		case time.Since(s.unhappy) > 2*simSilence+3*s.a.Slow: // what A is at comes first
			s.w.Violate("P6", "\"protected\" is said, but nobody could take over, for %v", time.Since(s.unhappy))
		}
		s.mu.Unlock()
	}
}

// cutPower is P2 of a backup with durable_ack: what a power cut at any moment
// would leave of its disk can be promoted.
func (s *sim) cutPower(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(s.w.Rand() % uint64(4*simEpoch))):
		}
		s.b.CheckPromoted()
	}
}

// judge is P5, at the end of a run in which everything works again.
func (s *sim) judge() {
	s.mu.Lock()
	over, result := s.over, s.result
	s.mu.Unlock()
	running := runs(s.a, s.b)
	// Whose power failed after it had won the domain took it along; that is
	// two failures. One failure never costs the domain.
	if !running && s.faults <= 1 && !s.a.Down() && !s.unsure() {
		s.w.Violate("P5", "one failure (%s) and the domain runs nowhere; session over %v: %v", strings.Join(s.story, "; "), over, result)
	}
	if !running && s.faults <= 1 && s.a.Down() && s.b.Domain(simDomain) == nil && s.w.Takeovers == 0 && s.wasReady() {
		s.w.Violate("P5", "power cut at A after it was protected, and B does not run the domain")
	}
	if running && runs(s.a) && !over && !s.a.Down() && !s.b.Down() {
		// Connected again and synced by itself.
		if st := s.session.Status(); !st.Protected && st.State != primary.Seeding.String() && !errors.Is(s.lastBoth(st), primary.ErrBothRun) && result == nil {
			s.w.Violate("P5", "everything works again, but the domain is %s: %s", st.State, st.LastError)
		}
	}
}

// runs reports whether the domain runs on one of the hosts, now or after a pause
// or a takeover, of slow hosts too.
func runs(hosts ...*simxen.Host) bool {
	for range 200 {
		for _, h := range hosts {
			if d := h.Domain(simDomain); d != nil && d.Runs() {
				return true
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// unsure: the domain was handed to a backup that is gone since. It may have run
// there, and nobody can say: then the copy here waits, for an operator.
func (s *sim) unsure() bool {
	st := s.session.Status().State
	return s.switched && s.b.Down() && (s.over || st == primary.Doubt.String() || st == primary.Fenced.String())
}

func (s *sim) wasReady() bool { return s.session.Status().Checkpoints > 0 }

func (s *sim) lastBoth(st primary.Status) error {
	if strings.Contains(st.LastError, primary.ErrBothRun.Error()) {
		return primary.ErrBothRun
	}
	return nil
}

// end stops everything in order, and checks that a domain that was let go has
// said all it had to say.
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
			s.w.Violate("P5", "the session does not end when asked (%s)", s.session.Status().State)
		}
		s.primary.Kill()
		<-done
	}
	if d := s.a.Domain(simDomain); d != nil && d.Runs() && s.over && s.result == nil {
		d.Freeze()
		time.Sleep(50 * time.Millisecond)
		if n := d.Undelivered(); n > 0 && s.w.Takeovers == 0 {
			s.w.Violate("P5", "protection has ended and %d packets are lost or still held", n)
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

// endWell is end, after which no promise was broken.
func (s *sim) endWell() {
	s.t.Helper()
	s.end()
	for _, v := range s.w.Violations() {
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

// runSim plays one schedule and returns what was violated, and the story.
func runSim(t *testing.T, seed uint64, v variant, log *zap.Logger) (violations, story []string, w *simxen.World) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, v, log)
		s.run()
		violations, story, w = s.w.Violations(), s.story, s.w
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
		v, story, w := runSim(t, *simSeed, v, log)
		t.Logf("seed %d: %s\n%d takeovers, %d packets heard", *simSeed, strings.Join(story, "\n  "), w.Takeovers, w.Delivered)
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
					v, story, w := runSim(t, seed, v, zap.NewNop())
					takeovers.Add(int64(w.Takeovers))
					promoted.Add(int64(w.Promoted))
					heard.Add(int64(w.Delivered))
					for _, x := range v {
						bad.Add(1)
						t.Errorf("seed %d: %s\n  story:\n  %s", seed, x, strings.Join(story, "\n  "))
					}
				}
			})
		}
	})
	t.Logf("%d schedules, %d violations; %d takeovers, %d looks at what a power cut leaves, %d packets heard outside", min(next.Load(), int64(*simSeeds)), bad.Load(), takeovers.Load(), promoted.Load(), heard.Load())
}

// earlyOutput breaks P1: an epoch is let out when it is sealed, not acked.
type earlyOutput struct{ xlft.Output }

func (o earlyOutput) Seal(e uint64) error {
	if err := o.Output.Seal(e); err != nil {
		return err
	}
	return o.Output.Release(e)
}

func (o earlyOutput) Release(uint64) error { return nil }

// lossyOutput breaks P5: what is held when protection ends is dropped.
type lossyOutput struct{ xlft.Output }

func (o lossyOutput) Abandon() error {
	o.Output.Discard()
	return o.Output.Abandon()
}

// swappingCopy breaks P2: two writes after one another reach the disk in the
// wrong order.
type swappingCopy struct {
	backup.DiskCopy
	mu   sync.Mutex
	off  int64
	kept []byte
}

// swap keeps a write for later and returns the one that was kept. Nothing waits
// with the lock held: the simulation's clock would stand still.
func (c *swappingCopy) swap(p []byte, off int64) (kept []byte, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept, at = c.kept, c.off
	c.kept, c.off = p, off
	return kept, at
}

func (c *swappingCopy) WriteAt(p []byte, off int64, fua bool) error {
	kept, at := c.swap(nil, 0)
	if kept == nil {
		c.swap(bytes.Clone(p), off)
		return nil
	}
	return errors.Join(c.DiskCopy.WriteAt(p, off, fua), c.DiskCopy.WriteAt(kept, at, fua))
}

func (c *swappingCopy) Flush() error {
	if kept, at := c.swap(nil, 0); kept != nil {
		c.DiskCopy.WriteAt(kept, at, false)
	}
	return c.DiskCopy.Flush()
}

// forgetfulCopy breaks P2: it answers a flush and does none.
type forgetfulCopy struct{ backup.DiskCopy }

func (c forgetfulCopy) Flush() error { return nil }

// boastfulCopy breaks P2: it says of what moment it is when its session ends,
// and lacks the newest write.
type boastfulCopy struct {
	backup.DiskCopy
	off int64
	old []byte // what the newest write took the place of
}

func (c *boastfulCopy) WriteAt(p []byte, off int64, fua bool) error {
	c.off, c.old = off, make([]byte, len(p))
	return errors.Join(c.DiskCopy.ReadAt(c.old, off), c.DiskCopy.WriteAt(p, off, fua))
}

func (c *boastfulCopy) Record(r xlft.DiskRecord) error {
	if r.Mark.Epoch > 0 && c.old != nil {
		c.DiskCopy.WriteAt(c.old, c.off, true)
	}
	return c.DiskCopy.Record(r)
}

// hastyCopy breaks P2: its journal is not on stable storage when it says so.
type hastyCopy struct{ backup.DiskCopy }

func (c hastyCopy) Durable() diskrepl.EpochStore {
	if l := c.DiskCopy.Durable(); l != nil {
		return hastyStore{l}
	}
	return nil
}

type hastyStore struct{ diskrepl.EpochStore }

func (s hastyStore) Create(epoch uint64) (diskrepl.EpochFile, error) {
	l, err := s.EpochStore.Create(epoch)
	return hastyFile{l}, err
}

type hastyFile struct{ diskrepl.EpochFile }

func (hastyFile) Sync() error { return nil }

// deafCopy breaks P2: what the primary may not have written is not written.
type deafCopy struct{ backup.DiskCopy }

func (c deafCopy) WriteAt([]byte, int64, bool) error { return nil }

// eagerGates break P2: held writes go to the storage when they are sealed.
type eagerGates struct{ simGates }

func (g eagerGates) Seal(e uint64) error {
	if err := g.simGates.Seal(e); err != nil {
		return err
	}
	return g.disks.Release(e)
}

// hastyGates break P2: the backup is told to run while writes are on their way.
type hastyGates struct{ simGates }

func (g hastyGates) Drain(context.Context) error { return nil }

// yesArbiter breaks P3: everybody is told yes.
type yesArbiter struct{ xlft.Arbiter }

func (yesArbiter) Claim(context.Context, xlft.ArbiterQuery) (bool, error) { return true, nil }

// TestFalseSuspicion: a backup that is only slow to answer is told to drop its
// replica before its primary hangs up, so that not even an arbiter that says
// yes to both lets both run.
func TestFalseSuspicion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }}, zap.NewNop())
		s.receive()
		s.protect()
		for range 20 {
			s.awaitProtected()
			time.Sleep(time.Duration(s.rng.Int64N(int64(2 * simEpoch))))
			s.net.Mute("B", true)
			time.Sleep(2 * simSilence)
			if st := s.session.Status(); st.Protected {
				t.Errorf("protected, says a primary that has not heard its backup for %v", 2*simSilence)
			}
			s.net.Mute("B", false)
		}
		s.endWell()
		if s.w.Takeovers > 0 {
			t.Errorf("%d takeovers", s.w.Takeovers)
		}
	})
}

// A lazyCopy does not come back from the flush before it is recorded as a
// replica before it may, and remembers what it was recorded as.
type lazyCopy struct {
	backup.DiskCopy
	flush   chan struct{}
	durable diskrepl.EpochStore
	last    atomic.Value // xlft.DiskState
}

func (c *lazyCopy) Flush() error {
	// The domain flushes too.
	if pc, _, _, _ := runtime.Caller(1); strings.HasSuffix(runtime.FuncForPC(pc).Name(), ".commitDisks") {
		<-c.flush
	}
	return c.DiskCopy.Flush()
}

func (c *lazyCopy) Record(r xlft.DiskRecord) error {
	c.last.Store(r.State)
	return c.DiskCopy.Record(r)
}

func (c *lazyCopy) Durable() diskrepl.EpochStore { return c.durable }

// lazySim runs until the domain is protected, with a copy that is not flushed
// yet.
func lazySim(t *testing.T, durable diskrepl.EpochStore) (*sim, *lazyCopy) {
	c := &lazyCopy{flush: make(chan struct{}), durable: durable}
	s := newSim(t, 2, variant{storage: mirrored, copy: func(inner backup.DiskCopy) backup.DiskCopy {
		c.DiskCopy = inner
		return c
	}}, zap.NewNop())
	s.receive()
	s.protect()
	s.awaitProtected()
	return s, c
}

// TestTakeoverInFirstFlush: the domain is taken over while the first copy is
// still on its way to stable storage. The record that it is a copy must not
// come after the one that it is the domain's disk.
func TestTakeoverInFirstFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := lazySim(t, nil)
		s.a.Crash()
		time.Sleep(4 * simSilence)
		close(c.flush)
		time.Sleep(simHeal)
		if d := s.b.Domain(simDomain); d == nil || !d.Runs() {
			t.Error("the domain does not run on B")
		}
		if st := c.last.Load(); st != xlft.DiskActive {
			t.Errorf("the disk of a domain that runs is recorded as %q", st)
		}
		s.endWell()
	})
}

// TestDurableAckWaitsForCopy: nothing counts as durable on a copy that the host
// would not know as usable after a power cut.
func TestDurableAckWaitsForCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := lazySim(t, diskrepl.EpochDir(t.TempDir()))
		time.Sleep(10 * simEpoch)
		if e := s.session.Status().Epoch; e != 1 {
			t.Errorf("epoch %d was acked, and the copy is known as %q", e, c.last.Load())
		}
		close(c.flush)
		time.Sleep(10 * simEpoch)
		if st := s.session.Status(); !st.Protected || st.Epoch < 2 {
			t.Errorf("after the flush: %+v", st)
		}
		s.endWell()
	})
}

// TestSimulationCatches breaks each promise on purpose, and wants the checks to
// notice.
func TestSimulationCatches(t *testing.T) {
	for _, c := range []struct {
		promise, how string
		broken       variant
	}{
		{"P1", "output leaves at the seal", variant{output: func(o xlft.Output) xlft.Output { return earlyOutput{o} }}},
		{"P2", "applied before the commit", variant{leak: true, storage: mirrored}},
		{"P2", "disk sealed after the resume", variant{lateSeal: 15 * time.Millisecond, storage: mirrored}},
		{"P2", "writes out of order", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return &swappingCopy{DiskCopy: c} }, storage: mirrored}},
		{"P2", "flush lost", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return forgetfulCopy{c} }, storage: mirrored}},
		{"P2", "copy older than it says", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return &boastfulCopy{DiskCopy: c} }, storage: mirrored, faults: []int{receiverStop, powerCutA}}},
		{"P2", "journal not on stable storage", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return hastyCopy{c} }, storage: mirrored, faults: []int{powerCutB}}},
		{"P2", "journal replayed twice, out of order", variant{twice: true, storage: mirrored}},
		{"P2", "shared disk sealed after the resume", variant{lateSeal: 15 * time.Millisecond, storage: shared}},
		{"P2", "held writes leave at the seal", variant{gates: func(g simGates) xlft.Output { return eagerGates{g} }, storage: shared}},
		{"P2", "shared storage not replayed", variant{copy: func(c backup.DiskCopy) backup.DiskCopy { return deafCopy{c} }, storage: shared}},
		{"P2", "handed over before the storage has all", variant{gates: func(g simGates) xlft.Output { return hastyGates{g} }, storage: shared, faults: []int{switchOver}}},
		{"P2", "shared storage without a fence", variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }, storage: shared}},
		{"P3", "arbiter says yes to both", variant{arbiter: func(a xlft.Arbiter) xlft.Arbiter { return yesArbiter{a} }}},
		{"P4", "checkpoint not applied whole", variant{torn: true}},
		{"P5", "held output dropped", variant{output: func(o xlft.Output) xlft.Output { return lossyOutput{o} }}},
		{"P6", "silence not noticed", variant{patience: time.Minute}},
		{"P6", "hanging capture not noticed", variant{noLimit: true, guest: func(g xlft.Guest) xlft.Guest {
			return &hangingGuest{g, 3, func(ctx context.Context) { <-ctx.Done() }}
		}}},
	} {
		t.Run(c.promise+" "+c.how, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 500; seed++ {
				violations, _, _ := runSim(t, seed, c.broken, zap.NewNop())
				for _, v := range violations {
					if strings.HasPrefix(v, c.promise) {
						t.Logf("caught with seed %d: %s", seed, v)
						return
					}
				}
			}
			t.Errorf("500 schedules with %s broken on purpose, and nothing noticed", c.promise)
		})
	}
}
