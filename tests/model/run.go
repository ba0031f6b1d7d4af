package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/netbuffer"
	"xlft/savestream"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// A setup is one protected guest between two hosts.
type setup struct {
	rate      float64       // of the link, bytes a second
	rtt       time.Duration // of the link
	pacing    xlft.Pacing
	pages     int // of the guest
	costs     costs
	pageCache int64
	torn      bool // the backup is broken on purpose
}

// A world is a setup that runs: session, wire, receiver and gate are those that ship.
type world struct {
	setup
	guest   *guest
	link    *link
	session *primary.Session
	market  *market
	runs    chan []byte
	ended   chan error
	close   func()
}

const failureTimeout = time.Second

// begin protects a guest, and returns when its backup has the first checkpoint.
func begin(s setup, workTime time.Duration) (*world, error) {
	dir, err := os.MkdirTemp("", "xlft-model-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	identity := func(name string) (*wire.Identity, error) {
		if _, err := wire.GenerateIdentity(filepath.Join(dir, name), name, false); err != nil {
			return nil, err
		}
		return wire.LoadIdentity(filepath.Join(dir, name))
	}
	a, err := identity("a")
	if err != nil {
		return nil, err
	}
	b, err := identity("b")
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &world{
		setup: s, guest: newGuest(s.pages, s.costs), link: &link{rate: s.rate, delay: s.rtt / 2},
		runs: make(chan []byte, 1), ended: make(chan error, 1),
	}
	w.market = newMarket(w.guest, 1, workTime)
	address, err := w.link.listen(inner.Addr().String())
	if err != nil {
		return nil, err
	}
	there, stopThere := context.WithCancel(context.Background())
	r := &backup.Receiver{
		Software: "model", Restorer: &restorer{s.pages, w.runs, s.torn}, Arbiter: both{}, Store: new(records), Log: zap.NewNop(),
		PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 30, PageCache: s.pageCache,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(there, wire.NewListener(inner, b.TLSConfig(func(f wire.Fingerprint) bool { return f == a.Fingerprint })))
	}()
	gate := netbuffer.New(netbuffer.Options{}, netbuffer.Vif{Name: "vif1.0", Path: w.market.path, Current: w.market.path.Current()})
	w.session = &primary.Session{
		Domain: "web1", Software: "model", Instance: "1",
		Offer: wire.Offer{UUID: "u", Config: []byte("{}"), MaxMemKiB: uint64(s.pages) * 4},
		Settings: primary.Settings{
			Pacing: s.pacing, FailureTimeout: failureTimeout, AckTimeout: time.Minute, SuspendTimeout: time.Second,
			RetryDelay: time.Second, SpoolLimit: 1 << 30, Compress: true, PageCache: s.pageCache,
		},
		Guest: w.guest, Gates: xlft.Gates{Net: gate}, Arbiter: both{}, Store: new(records), Peer: "B",
		Dial: a.Dialer([]string{address}, b.Fingerprint), Events: gate.Events(), Log: zap.NewNop(),
	}
	here, stopHere := context.WithCancel(context.Background())
	go func() { w.ended <- w.session.Run(here) }()
	w.close = func() {
		stopHere()
		w.link.fail()
		stopThere()
		<-served
		close(w.market.in)
	}
	if err := w.await(1); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// await waits for the ack of an epoch.
func (w *world) await(epoch uint64) error {
	for {
		changed := w.session.Changed()
		if st := w.session.Status(); st.Epoch >= epoch && st.State == primary.Protected {
			return nil
		}
		select {
		case <-changed:
		case err := <-w.ended:
			return fmt.Errorf("the session has ended: %w", err)
		}
	}
}

// A result is what a run showed.
type result struct {
	orders, answered uint64
	p50, p99         time.Duration // from an order's arrival at the host until its answer leaves it
	perSecond        float64       // checkpoints
	runs             float64       // share of its time that the guest ran
	pause, ack       time.Duration // medians
	wire             float64       // bytes a second
	lost             uint64        // answered orders that the backup did not have after the takeover
}

// trade has clients send orders to a protected guest for some time. Then the guest's host
// dies, and the backup takes over.
func trade(s setup, rate float64, work, warm, d time.Duration) (result, error) {
	w, err := begin(s, work)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	stop, sent := make(chan struct{}), make(chan uint64, 1)
	go func() { sent <- w.market.order(rate, stop) }()
	time.Sleep(warm)
	w.market.mu.Lock()
	w.market.answered = w.market.answered[:0]
	w.market.mu.Unlock()
	w.guest.run.RLock()
	stood := w.guest.stood
	w.guest.run.RUnlock()
	before, begun, bytes := w.session.Status(), time.Now(), w.link.bytes()
	time.Sleep(d)
	took := time.Since(begun)
	after := w.session.Status()
	var r result
	r.wire = float64(w.link.bytes()-bytes) / took.Seconds()
	w.guest.run.RLock()
	r.runs = 1 - float64(w.guest.stood-stood)/float64(took)
	w.guest.run.RUnlock()
	r.perSecond = float64(after.Epoch-before.Epoch) / took.Seconds()
	r.pause, r.ack = after.PauseMedian.Total, after.AckMedian
	w.market.mu.Lock()
	answered := append([]time.Duration(nil), w.market.answered...)
	w.market.mu.Unlock()
	r.answered = uint64(len(answered))
	r.p50, r.p99 = percentile(answered, 0.5), percentile(answered, 0.99)

	w.market.path.Destroy() // nothing leaves the host any more
	w.link.fail()
	close(stop)
	r.orders = <-sent
	select {
	case mem := <-w.runs:
		w.market.mu.Lock()
		defer w.market.mu.Unlock()
		r.lost = lost(mem, w.market.highest)
		return r, nil
	case <-time.After(failureTimeout + 10*time.Second):
		return r, errors.New("the backup did not take over")
	}
}

// dirty has the guest write to n pages in each epoch, and returns the medians of pause and ack.
func dirty(s setup, n, epochs int) (result, error) {
	w, err := begin(s, 0)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	bytes, begun := w.link.bytes(), time.Now()
	for e := range epochs {
		w.guest.run.RLock()
		for p := range n {
			for word := 0; word < savestream.PageSize; word += 256 { // 16 lines of 64 change
				w.guest.write(uint64(p+1)*savestream.PageSize+uint64(word), []byte{byte(e), byte(p), byte(p >> 8), byte(word)})
			}
		}
		next := w.session.Status().Epoch + 1
		w.market.path.Send(make([]byte, 16)) // it speaks, so a checkpoint is due
		w.guest.run.RUnlock()
		if err := w.await(next); err != nil {
			return result{}, err
		}
	}
	st := w.session.Status()
	return result{
		pause: st.PauseMedian.Total, ack: st.AckMedian,
		wire: float64(w.link.bytes()-bytes) / time.Since(begun).Seconds(),
	}, nil
}

// both is the arbiter "none": both sides may have the domain.
type both struct{}

func (both) Claim(context.Context, xlft.Claim) (bool, error) { return true, nil }
func (both) String() string                                  { return "none" }

// records are a host's records, in memory.
type records struct {
	mu  sync.Mutex
	all map[string]xlft.Ownership
}

func (r *records) Load(domain string) (xlft.Ownership, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[domain], nil
}

func (r *records) Save(domain string, o xlft.Ownership) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]xlft.Ownership{}
	}
	r.all[domain] = o
	return nil
}
