package xlft_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"xlft/savestream"

	"xlft/tests/simxen"
	"xlft/xlft/backup"
	"xlft/xlft/internal/arbiter"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// smallStream is one checkpoint of a domain of one page.
func smallStream(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := savestream.NewEncoder(&b, savestream.Header{Version: 3, Type: savestream.HVM, XenMajor: 4, XenMinor: 17})
	for _, err := range []error{
		enc.Encode(savestream.Record{Type: savestream.StaticDataEnd}),
		enc.WritePages([]savestream.PageEntry{{PFN: 1}}, make([]byte, savestream.PageSize)),
		enc.Encode(savestream.Record{Type: savestream.HVMContext, Body: []byte("context")}),
		enc.Encode(savestream.Record{Type: savestream.Checkpoint}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// A rig is a receiver on host B and a hand-made primary on host A.
type rig struct {
	t       testing.TB
	a       *simxen.Process
	b       *simxen.Process
	hostB   *simxen.Host
	makes   *simxen.Restorer
	control *wire.Conn
	data    *wire.Conn
}

func newRig(t testing.TB) *rig {
	out := simxen.NewOutside(1)
	n := simxen.NewNet(time.Millisecond)
	a, b := simxen.NewHost(out, n, "A"), simxen.NewHost(out, n, "B")
	r := &rig{t: t, a: a.Spawn(), b: b.Spawn(), hostB: b}
	r.makes = &simxen.Restorer{P: r.b}
	rc := &backup.Receiver{
		Software: "test", Restorer: r.makes, Arbiter: arbiter.None{}, Store: r.b.Store(records(t)), Log: zap.NewNop(),
		PeerName: func(net.Conn) string { return "A" }, RetryDelay: time.Second, EpochLimit: 1 << 20,
	}
	go rc.Serve(r.b.Context(), r.b.Listen())
	return r
}

const testSession = "00112233445566778899aabbccddeeff"

func (r *rig) open(kind wire.ConnKind) *wire.Conn {
	r.t.Helper()
	raw, err := r.a.Dial("B")(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	c := wire.NewConn(raw)
	if _, err := wire.Greet(c, kind, testSession, "test", time.Second); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) session() {
	r.t.Helper()
	r.control = r.open(wire.KindControl)
	o := wire.Offer{Domain: "web1", UUID: "u", Generation: 1, Arbiter: arbiter.None{}.String(), Config: []byte("{}"), FailureTimeout: time.Second, MaxEpoch: 1 << 20}
	if err := r.control.WriteJSON(wire.TypeOffer, 0, o); err != nil {
		r.t.Fatal(err)
	}
	if err := r.control.Expect(wire.TypeAccept, nil); err != nil {
		r.t.Fatal(err)
	}
	r.data = r.open(wire.KindData)
}

// epoch sends a stream as epoch n. sum makes the checksum at the epoch's end.
func (r *rig) epoch(n uint64, stream []byte, sum wire.EpochEnd) {
	r.data.WriteFrame(wire.TypeEpochBegin, n, nil)
	for len(stream) > 0 {
		k := min(len(stream), 1000)
		r.data.WriteData(n, stream[:k], false, false)
		stream = stream[k:]
	}
	r.data.WriteFrame(wire.TypeEpochEnd, n, sum.Append(nil))
}

func sumOf(b []byte) wire.EpochEnd {
	return wire.EpochEnd{Length: uint64(len(b)), CRC: crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))}
}

// answer returns the receiver's answer to an epoch: nil for an ack.
func (r *rig) answer(n uint64) error {
	r.control.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		f, err := r.control.ReadFrame()
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.TypeHeartbeat:
		case wire.TypeAck:
			if f.Epoch != n {
				return fmt.Errorf("ack of %d", f.Epoch)
			}
			return nil
		default:
			return f.Refusal()
		}
	}
}

func (r *rig) close() {
	r.a.Kill()
	r.b.Terminate()
	time.Sleep(time.Minute)
	r.hostB.Shutdown()
}

func inBubble(t *testing.T, f func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.session()
		f(r)
		r.close()
	})
}

func TestWholeEpochIsAcked(t *testing.T) {
	s := smallStream(t)
	inBubble(t, func(r *rig) {
		r.epoch(1, s, sumOf(s))
		if err := r.answer(1); err != nil {
			t.Error(err)
		}
	})
}

// A damaged epoch is never acked: the replica is destroyed, and the primary is
// told why.
func TestDamagedEpoch(t *testing.T) {
	s := smallStream(t)
	refused := func(t *testing.T, what string, stream []byte, sum wire.EpochEnd) {
		t.Helper()
		inBubble(t, func(r *rig) {
			r.epoch(1, stream, sum)
			err := r.answer(1)
			var no *wire.Refusal
			if !errors.As(err, &no) || no.Code != wire.CodeReplica {
				t.Errorf("%s: %v", what, err)
			}
			if r.hostB.Domain("web1") != nil {
				t.Errorf("%s: it runs", what)
			}
		})
	}
	for i := range s {
		// Of the page's contents every 97th byte is enough.
		if i > 100 && i < len(s)-60 && i%97 != 0 {
			continue
		}
		flipped := bytes.Clone(s)
		flipped[i] ^= 1 << (i % 8)
		refused(t, fmt.Sprintf("bit flipped in byte %d", i), flipped, sumOf(s))
		refused(t, fmt.Sprintf("cut at byte %d", i), s[:i], sumOf(s[:i]))
	}
}

// Before the first complete epoch there is nothing to take over from.
func TestLostWhileSyncing(t *testing.T) {
	s := smallStream(t)
	inBubble(t, func(r *rig) {
		r.data.WriteFrame(wire.TypeEpochBegin, 1, nil)
		r.data.WriteData(1, s[:len(s)-8], false, false)
		r.a.Kill()
		time.Sleep(10 * time.Second)
		if r.hostB.Domain("web1") != nil {
			t.Error("an unfinished copy runs")
		}
	})
}

// When a primary dies in its second epoch, the backup takes over from the
// first.
func TestTakeoverIgnoresUnfinishedEpoch(t *testing.T) {
	s := smallStream(t)
	inBubble(t, func(r *rig) {
		r.epoch(1, s, sumOf(s))
		if err := r.answer(1); err != nil {
			t.Fatal(err)
		}
		r.data.WriteFrame(wire.TypeEpochBegin, 2, nil)
		r.data.WriteData(2, s[40:100], false, false)
		r.a.Kill()
		time.Sleep(10 * time.Second)
		if r.hostB.Domain("web1") == nil {
			t.Error("the domain runs nowhere")
		}
	})
}

func TestProtocolErrors(t *testing.T) {
	s := smallStream(t)
	for _, c := range []struct {
		name string
		do   func(r *rig)
		want string
	}{
		{"epoch out of order", func(r *rig) { r.epoch(2, s, sumOf(s)) }, "epoch 1: EPOCH_BEGIN of epoch 2 instead of its begin"},
		{"data before its begin", func(r *rig) { r.data.WriteData(1, s, false, false) }, "epoch 1: DATA of epoch 1 instead of its begin"},
		{"two checkpoints in one epoch", func(r *rig) { r.epoch(1, append(bytes.Clone(s), s[40:]...), wire.EpochEnd{}) },
			"epoch 1: data after its checkpoint"},
		{"heartbeat on the data connection", func(r *rig) { r.data.WriteFrame(wire.TypeHeartbeat, 0, nil) }, "instead of its begin"},
		{"wrong checksum", func(r *rig) { r.epoch(1, s, wire.EpochEnd{Length: uint64(len(s)), CRC: 1}) }, "were sent"},
		{"too large", func(r *rig) {
			r.epoch(1, s, sumOf(s))
			r.answer(1)
			r.data.WriteFrame(wire.TypeEpochBegin, 2, nil)
			page := smallPages(256)
			for range 2 {
				for p := page; len(p) > 0; {
					k := min(len(p), wire.DataBody)
					r.data.WriteData(2, p[:k], false, false)
					p = p[k:]
				}
			}
		}, "larger than 1048576 bytes: see checkpoint_memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				c.do(r)
				if err := r.answer(1); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("the receiver says %v, want %q", err, c.want)
				}
			})
		})
	}
}

// smallPages is a PAGE_DATA record of n pages.
func smallPages(n int) []byte {
	var b bytes.Buffer
	enc := savestream.NewEncoder(&b, savestream.Header{Version: 3, Type: savestream.HVM})
	enc.Encode(savestream.Record{Type: savestream.StaticDataEnd})
	at := b.Len()
	enc.WritePages(make([]savestream.PageEntry, n), make([]byte, n*savestream.PageSize))
	return b.Bytes()[at:]
}

// The primary is told that its replica will never run before the replica is
// destroyed. The primary's next offer waits for that, and is accepted.
func TestProtectAgainWhileReplicaGoes(t *testing.T) {
	s := smallStream(t)
	inBubble(t, func(r *rig) {
		r.makes.Freeing = 5 * time.Second
		r.epoch(1, s, sumOf(s))
		if err := r.answer(1); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		r.control.WriteFrame(wire.TypeDestroy, 0, nil)
		var no *wire.Refusal
		if err := r.answer(0); !errors.As(err, &no) || no.Code != wire.CodeDestroyed || time.Since(begun) > time.Second {
			t.Fatalf("after %v: %v", time.Since(begun), err)
		}
		r.control.Close()
		r.data.Close()

		q := r.open(wire.KindQuery)
		q.WriteJSON(wire.TypeCheck, 0, wire.Offer{Domain: "web1", Arbiter: arbiter.None{}.String(), FailureTimeout: time.Second})
		var res wire.CheckResult
		if err := q.Expect(wire.TypeCheckResult, &res); err != nil || len(res.Problems) > 0 {
			t.Errorf("ft-check right after: %v, %+v", err, res.Problems)
		}
		r.session()

		r.makes.Freeing = time.Minute
		r.control.WriteFrame(wire.TypeDestroy, 0, nil)
		r.answer(0)
		q = r.open(wire.KindQuery)
		q.WriteJSON(wire.TypeCheck, 0, wire.Offer{Domain: "web1", Arbiter: arbiter.None{}.String(), FailureTimeout: time.Second})
		res = wire.CheckResult{}
		err := q.Expect(wire.TypeCheckResult, &res)
		if err != nil || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].What, "still destroying") {
			t.Errorf("ft-check while it takes long: %v, %+v", err, res.Problems)
		}
	})
}

func TestRefusedOffers(t *testing.T) {
	for _, c := range []struct {
		name  string
		offer wire.Offer
		want  string
	}{
		{"no name", wire.Offer{FailureTimeout: time.Second}, "offer without a name"},
		{"failure timeout of an hour", wire.Offer{Domain: "web1", FailureTimeout: time.Hour}, "sane failure timeout"},
		{"another arbiter", wire.Offer{Domain: "web1", FailureTimeout: time.Second, Arbiter: "fence"}, "set the same arbiter.type on both"},
		{"checkpoints too large", wire.Offer{Domain: "web1", Arbiter: arbiter.None{}.String(), FailureTimeout: time.Second, MaxEpoch: 1 << 30},
			"see checkpoint_memory in both configs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				k := r.open(wire.KindControl)
				k.WriteJSON(wire.TypeOffer, 0, c.offer)
				if err := k.Expect(wire.TypeAccept, nil); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("the receiver says %v, want %q", err, c.want)
				}
				r.close()
			})
		})
	}
}

// leftover is a Restorer of a host on which something of a replica may still be.
type leftover struct {
	backup.Restorer
	left *atomic.Bool
}

func (l leftover) Find(domain, uuid string) (backup.Found, error) {
	if l.left.Load() {
		return backup.FoundReplica, nil
	}
	return l.Restorer.Find(domain, uuid)
}

// A takeover fails, and something of the replica is still there, perhaps a worker
// on its way to run it: until that is gone the primary keeps its copy paused,
// though it hears the backup well.
func TestUncertainTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		var left atomic.Bool
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = leftover{restoring{r.Restorer, func(context.Context, backup.Replica) error {
				left.Store(true)
				return errors.New("hotplug script failed")
			}}, &left}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if o, err := m.session.Failover(ctx); err == nil {
			m.t.Fatalf("the switch-over succeeded: %v", o)
		}
		for range 300 {
			if m.domain.Runs() {
				m.t.Fatalf("A runs the domain, and B still may: %+v", m.session.Status())
			}
			time.Sleep(100 * time.Millisecond)
		}
		left.Store(false)
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "none")
}
