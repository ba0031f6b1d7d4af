package xlft_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xlft/tests/simxen"
	"xlft/xlft"
	"xlft/xlft/backup"
	"xlft/xlft/primary"
	"xlft/xlft/wire"
)

// Cases at the backup's seams: what it answers, and when, while a worker, a record,
// a disk or the hypervisor hangs or fails.

// An operator stops the protection; the replica is large, and is freed for ten
// seconds. The protector is killed before it hears DESTROYED. Its successor asks a
// backup that lives and has given the domain up, and fences it.
func TestGivenUpIsSaidAtOnce(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer.(*simxen.Restorer).Freeing = 10 * time.Second })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Millisecond)
		m.session.Stop(ctx)
		cancel()
		m.pa.Kill()
		m.protect(m.a, m.domain, "B", nil)
		time.Sleep(30 * time.Second)
		if m.b.Down() {
			m.t.Error("B was fenced: it lives, its receiver answers, and it has given the domain up")
		}
	}, "fence")
}

// A worker that was ordered to run the domain completes it only after the takeover's
// limit, while the receiver waits for the worker's end. The primary asks a receiver
// that is reachable all the time.
type lateReplica struct {
	backup.Replica
	after time.Duration
}

func (l lateReplica) Activate(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
func (l lateReplica) Destroy() error {
	time.Sleep(l.after)
	return l.Replica.Activate(context.Background())
}

type lateRestorer struct {
	backup.Restorer
	after time.Duration
}

func (r lateRestorer) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	v, err := r.Restorer.Restore(ctx, o)
	return lateReplica{v, r.after}, err
}

func TestLateTakeover(t *testing.T) {
	for _, failover := range []bool{false, true} {
		name, kinds := "protector killed", []string{"none"} // with fence the host is fenced, as documented
		if failover {
			name, kinds = "ft-failover", []string{"none", "fence"}
		}
		t.Run(name, func(t *testing.T) {
			seams(t, func(m *seam) {
				m.receive(m.b, func(r *backup.Receiver) {
					r.TakeoverLimit = 5 * time.Second
					r.Restorer = lateRestorer{r.Restorer, 20 * time.Second}
				})
				m.protect(m.a, m.domain, "B", nil)
				m.await(m.session, primary.Protected)
				if failover {
					go m.session.Failover(context.Background())
				} else {
					m.pa.Kill()
					m.protect(m.a, m.domain, "B", nil)
				}
				for range 600 {
					time.Sleep(100 * time.Millisecond)
					a, b := m.a.Domain(simDomain), m.b.Domain(simDomain)
					if a != nil && a.Runs() && b != nil && b.Runs() {
						m.t.Errorf("both run, and the network was whole all the time: A %v", m.session.Status().State)
						break
					}
				}
				if m.a.Down() || m.b.Down() {
					m.t.Errorf("fenced: A down %v, B down %v, though both live and hear each other", m.a.Down(), m.b.Down())
				}
				time.Sleep(time.Second)
			}, kinds...)
		})
	}
}

// A switch-over succeeds at the backup, clients hear the domain there, and the
// backup's host loses its power before that is recorded. When it is back the primary
// asks whether the domain ran there.
func TestPowerCutBeforeTook(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(ctx context.Context, v backup.Replica) error {
				if err := v.Activate(ctx); err != nil {
					return err
				}
				time.Sleep(60 * time.Millisecond) // the worker's word, an fsync
				m.b.Crash()
				return errors.New("no power")
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		go m.session.Failover(context.Background())
		time.Sleep(5 * time.Second)
		if !m.b.Down() {
			m.t.Fatal("not cut")
		}
		rec, _ := m.records[m.b].Load(simDomain)
		if !rec.Pending {
			m.t.Fatalf("B's record is %+v", rec)
		}
		m.b.PowerOn()
		m.receive(m.b, nil)
		time.Sleep(10 * time.Second)
		if m.domain.Runs() || m.session.Status().State != primary.Blocked {
			m.t.Errorf("A runs its copy: %v, and its clients know a newer one; %v", m.session.Status().State, m.outside.Violations())
		}
		for _, v := range m.outside.Violations() {
			m.t.Error(v)
		}
		// An operator, who knows what the clients know, says that A's copy is to run.
		m.splits = true
		if err := os.Remove(filepath.Join(string(m.records[m.b]), simDomain+".json")); err != nil {
			m.t.Fatal(err)
		}
		if !m.runs(m.a) {
			m.t.Errorf("A does not run the domain: %+v", m.session.Status())
		}
	}, "fence")
}

// After such a power cut the primary's domain is started anew and protected again: its
// offer is taken, and what the backup holds for possible is not forgotten.
func TestOfferAfterPowerCut(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			r.Restorer = restoring{r.Restorer, func(context.Context, backup.Replica) error {
				m.b.Crash()
				return errors.New("no power")
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		go m.session.Failover(context.Background())
		time.Sleep(time.Second)
		m.a.Crash()
		for _, h := range []*simxen.Host{m.a, m.b} {
			h.PowerOn()
		}
		m.receive(m.b, nil)
		m.outside, m.splits = simxen.NewOutside(1), true
		m.domain = m.a.Boot(simDomain, 12)
		m.protect(m.a, m.domain, "B", func(s *primary.Session) { s.Instance = "A/2" })
		m.await(m.session, primary.Protected)
		if rec, _ := m.records[m.b].Load(simDomain); rec.Took == 0 || rec.Took >= m.session.Status().Generation {
			m.t.Errorf("B's record is %+v, the session's generation %d", rec, m.session.Status().Generation)
		}
	}, "fence", "cas")
}

// A record that hangs (a dead disk under /var), at a takeover that was won.
type hangStore struct {
	xlft.Store
	hang *atomic.Bool
}

func (h hangStore) Save(d string, o xlft.Ownership) error {
	for h.hang.Load() {
		time.Sleep(time.Second)
	}
	return h.Store.Save(d, o)
}

func TestRecordHangsAtTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		hang := new(atomic.Bool)
		m.receive(m.b, func(r *backup.Receiver) { r.Store = hangStore{r.Store, hang} })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		hang.Store(true)
		m.a.Crash()
		time.Sleep(10 * time.Minute)
		if d := m.b.Domain(simDomain); d == nil || !d.Runs() {
			m.t.Errorf("ten minutes after one host died the domain runs nowhere: %+v", m.receiver.Replicas())
		}
		hang.Store(false)
		time.Sleep(10 * time.Second)
	}, "cas")
}

// A store whose records can't be read: a dead disk, a damaged file.
type unreadable struct {
	xlft.Store
	bad *atomic.Bool
}

func (u unreadable) Load(d string) (xlft.Ownership, error) {
	if u.bad.Load() {
		return xlft.Ownership{}, syscall.EIO
	}
	return u.Store.Load(d)
}

// The backup took the domain over, and runs it. Its record can't be read. It answers
// the primary's question, with that error; the domain is there for everybody to see.
func TestUnreadableRecordOfOwner(t *testing.T) {
	seams(t, func(m *seam) {
		bad := new(atomic.Bool)
		m.receive(m.b, func(r *backup.Receiver) { r.Store = unreadable{r.Store, bad} })
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		m.pa.Kill()
		if !m.runs(m.b) {
			m.t.Fatal("B does not run it")
		}
		bad.Store(true)
		m.protect(m.a, m.domain, "B", nil)
		time.Sleep(20 * time.Second)
		a, b := m.a.Domain(simDomain), m.b.Domain(simDomain)
		if a != nil && a.Runs() && b != nil && b.Runs() {
			m.t.Errorf("both run; the network is whole, and the backup's receiver answers: %v", m.session.Status().State)
		}
		if !m.domain.Gone() {
			m.t.Errorf("A does not know that B runs the domain: %+v", m.session.Status())
		}
	}, "none")
}

// The same kind with fence: a receiver was restarted, holds nothing, and its record
// can't be read. Its host answers, and is fenced.
func TestUnreadableRecordFencesNobody(t *testing.T) {
	seams(t, func(m *seam) {
		bad := new(atomic.Bool)
		m.begin()
		m.pb.Kill()
		bad.Store(true)
		m.receive(m.b, func(r *backup.Receiver) { r.Store = unreadable{r.Store, bad} })
		time.Sleep(20 * time.Second)
		if m.b.Down() {
			m.t.Errorf("B was fenced: it lives and answers")
		}
	}, "fence")
}

// What runs on a host can't be listed for a moment.
type blindRestorer struct {
	backup.Restorer
	blind *atomic.Bool
}

func (r blindRestorer) Find(d, u string) (backup.Found, error) {
	if r.blind.Load() {
		return backup.FoundNothing, errors.New("libxl: can't list domains")
	}
	return r.Restorer.Find(d, u)
}

func TestBlindBackup(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.pb.Kill()
		blind := new(atomic.Bool)
		blind.Store(true)
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = blindRestorer{r.Restorer, blind} })
		time.Sleep(20 * time.Second)
		if m.b.Down() {
			m.t.Errorf("B was fenced: it lives and answers")
		}
	}, "fence")
}

// disks protects a domain with a disk, by B. Wrap wraps the backup's copy.
func (m *seam) disks(shared bool, wrap func(backup.DiskCopy) backup.DiskCopy) {
	m.t.Helper()
	for _, h := range []*simxen.Host{m.a, m.b, m.c} {
		h.Shutdown()
	}
	m.outside = simxen.NewOutside(1)
	host := func(name string) *simxen.Host {
		h := simxen.NewHost(m.outside, m.net, name)
		m.records[h] = records(m.t)
		return h
	}
	m.a, m.b, m.c = host("A"), host("B"), host("C")
	if shared {
		simxen.Share(m.a, m.b)
	}
	m.domain = m.a.Boot(simDomain, 12)
	m.receive(m.b, func(r *backup.Receiver) {
		r.TakeoverLimit = 8 * time.Second
		r.Disks = &simxen.DiskHost{P: m.procs[len(m.procs)-1], Broken: wrap}
	})
	m.protect(m.a, m.domain, "B", func(s *primary.Session) {
		s.Gates.Disks = &simxen.Disks{P: m.procs[len(m.procs)-1], Domain: m.domain, To: "B"}
		s.Offer.Disks = m.domain.OfferedDisks()
		s.Settings.AckTimeout = 20 * time.Second
	})
	m.await(m.session, primary.Protected)
	time.Sleep(3 * time.Second)
}

// A hangingCopy is a backup's disk on storage that hangs.
type hangingCopy struct {
	backup.DiskCopy
	hang   *atomic.Bool
	late   func(b []byte, was []byte)
	record func(xlft.DiskRecord)
}

func (h hangingCopy) wait() (waited bool) {
	for ; h.hang.Load(); waited = true {
		time.Sleep(100 * time.Millisecond)
	}
	return waited
}

func (h hangingCopy) WriteAt(b []byte, off int64, fua bool) error {
	if h.wait() && h.late != nil {
		was := make([]byte, len(b))
		h.DiskCopy.ReadAt(was, off)
		h.late(b, was)
	}
	return h.DiskCopy.WriteAt(b, off, fua)
}

func (h hangingCopy) Flush() error {
	h.wait()
	return h.DiskCopy.Flush()
}

func (h hangingCopy) Record(r xlft.DiskRecord) error {
	if h.record != nil {
		h.record(r)
	}
	return h.DiskCopy.Record(r)
}

// The backup's storage hangs in a switch-over of a domain on shared storage, and the
// takeover fails. The primary goes on only when the storage has gone on: the backup's
// writes would change what the domain has written since.
func TestHungReplayOfSharedStorage(t *testing.T) {
	seams(t, func(m *seam) {
		var hang atomic.Bool
		var overwrote, writes atomic.Int64
		m.disks(true, func(c backup.DiskCopy) backup.DiskCopy {
			return hangingCopy{c, &hang, func(b, was []byte) {
				writes.Add(1)
				if m.domain.Runs() && !bytes.Equal(b, was) {
					overwrote.Add(1)
				}
			}, nil}
		})
		hang.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		m.session.Failover(ctx)
		cancel()
		time.Sleep(20 * time.Second)
		if m.domain.Runs() {
			m.t.Error("A runs the domain while B may still write to its disk")
		}
		if rec, _ := m.records[m.b].Load(simDomain); rec.Role != xlft.HostFailed {
			m.t.Errorf("B's record is %+v: an operator who switches it off now would not have freed A", rec)
		}
		hang.Store(false)
		if !m.runs(m.a) || writes.Load() == 0 {
			m.t.Errorf("the domain runs nowhere: %+v; %d late writes", m.session.Status(), writes.Load())
		}
		if n := overwrote.Load(); n > 0 {
			m.t.Errorf("%d of %d late writes of the backup changed what the running domain has on its disk since", n, writes.Load())
		}
		time.Sleep(time.Second)
	}, "fence")
}

// The same with a copy of the disk's own: the primary needs not wait, and the copy is
// not recorded as the domain's disk when its storage goes on.
func TestHungMirrorAtTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		var hang atomic.Bool
		var became atomic.Bool
		m.disks(false, func(c backup.DiskCopy) backup.DiskCopy {
			return hangingCopy{c, &hang, nil, func(r xlft.DiskRecord) {
				if r.State == xlft.UpToDate {
					became.Store(true)
				}
			}}
		})
		hang.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		m.session.Failover(ctx)
		cancel()
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
		hang.Store(false)
		time.Sleep(5 * time.Second)
		if became.Load() {
			m.t.Error("B's copy is recorded as the domain's disk, and A runs the domain")
		}
	}, "cas", "fence")
}

// A domain comes to run on the backup, and is gone before its takeover is recorded: the
// takeover counts as one that failed. The primary's copy is outdated all the same.
func TestEndedRightAfterTakeover(t *testing.T) {
	seams(t, func(m *seam) {
		m.receive(m.b, func(r *backup.Receiver) {
			p := m.procs[len(m.procs)-1]
			r.Restorer = restoring{r.Restorer, func(ctx context.Context, v backup.Replica) error {
				if err := v.Activate(ctx); err != nil {
					return err
				}
				time.Sleep(60 * time.Millisecond)
				p.Guest(m.b.Domain(simDomain)).Destroy()
				return errors.New("the worker was killed")
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		m.session.Failover(ctx)
		cancel()
		time.Sleep(10 * time.Second)
		if m.domain.Runs() {
			m.t.Error("A runs its outdated copy")
		}
		if rec, _ := m.records[m.b].Load(simDomain); rec.Took == 0 {
			m.t.Errorf("B's record is %+v", rec)
		}
	}, "none", "fence", "cas")
}

// A question of before this session, which was under way for long, costs the session
// nothing.
func TestOutdatedReclaim(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.pb.Kill()
		m.receive(m.b, nil)
		time.Sleep(time.Second)
		m.await(m.session, primary.Protected)
		st := m.session.Status()
		if st.Generation < 2 {
			m.t.Fatalf("generation %d", st.Generation)
		}
		var r wire.OwnerResult
		q := wire.OwnerQuery{Domain: simDomain, UUID: "u", Generation: st.Generation - 1, Reclaim: true}
		if err := wire.Ask(context.Background(), m.spawn(m.a).Dial("B"), "sim", wire.TypeOwner, q, wire.TypeOwnerResult, &r); err != nil || r.Role != wire.RoleReplica {
			m.t.Errorf("%+v, %v; want undecided", r, err)
		}
		for range 50 {
			time.Sleep(20 * time.Millisecond)
			if now := m.session.Status(); now.State != primary.Protected {
				m.t.Fatalf("the newer session is gone: %v", now.State)
			}
		}
	}, "cas")
}

// What runs on the backup can't be found out for long, because its hypervisor hangs.
type blockedRestorer struct {
	backup.Restorer
	hang *atomic.Bool
}

func (r blockedRestorer) Find(d, u string) (backup.Found, error) {
	for r.hang.Load() {
		time.Sleep(100 * time.Millisecond)
	}
	return r.Restorer.Find(d, u)
}

func TestLookHangs(t *testing.T) {
	seams(t, func(m *seam) {
		m.begin()
		m.pb.Kill()
		hang := new(atomic.Bool)
		hang.Store(true)
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = blockedRestorer{r.Restorer, hang} })
		time.Sleep(20 * time.Second)
		if m.b.Down() || m.domain.Runs() && m.session.Status().State != primary.Arbitrating {
			m.t.Errorf("B down: %v; A: %v", m.b.Down(), m.session.Status().State)
		}
		hang.Store(false)
		if !m.runs(m.a) {
			m.t.Errorf("the domain runs nowhere: %+v", m.session.Status())
		}
	}, "fence", "none")
}

// A restore that never begins, for a peer whose certificate is then revoked: the
// reload hangs, and so does every later one.
type neverRestores struct {
	backup.Restorer
	let chan struct{}
}

func (r neverRestores) Restore(ctx context.Context, o wire.Offer) (backup.Replica, error) {
	<-r.let
	return r.Restorer.Restore(ctx, o)
}

func TestRevokeHangs(t *testing.T) {
	seams(t, func(m *seam) {
		let := make(chan struct{})
		m.receive(m.b, func(r *backup.Receiver) { r.Restorer = neverRestores{r.Restorer, let} })
		m.protect(m.a, m.domain, "B", nil)
		time.Sleep(time.Second)
		done := make(chan struct{})
		go func() {
			m.receiver.Revoke(context.Background(), "A") // as live.reload does: the daemon's context
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Minute):
			m.t.Error("a reload that revokes a peer waits for ever; a mended configuration would not be taken any more")
		}
		close(let)
		time.Sleep(time.Second)
	}, "cas")
}

// What runs here is a replica whose worker hangs: package restore says so while the
// worker has its lock.
type foundReplica struct {
	backup.Restorer
	hung *atomic.Bool
}

func (r foundReplica) Abandon(string) error {
	r.hung.Store(false)
	return nil
}

func (r foundReplica) Find(d, u string) (backup.Found, error) {
	if r.hung.Load() {
		return backup.FoundReplica, nil
	}
	return r.Restorer.Find(d, u)
}

// In a switch-over the receiver is restarted while its worker brings the domain up,
// and the worker hangs. The new receiver leaves the worker alone (Sweep), answers
// "replica" for ever, and no limit of a takeover is left.
func TestWorkerHangsAfterRestart(t *testing.T) {
	seams(t, func(m *seam) {
		hung := new(atomic.Bool)
		m.receive(m.b, func(r *backup.Receiver) {
			first := m.procs[len(m.procs)-1]
			r.TakeoverLimit = 10 * time.Second
			r.Restorer = restoring{r.Restorer, func(ctx context.Context, _ backup.Replica) error {
				first.Kill()
				<-ctx.Done()
				return context.Cause(ctx)
			}}
		})
		m.protect(m.a, m.domain, "B", nil)
		m.await(m.session, primary.Protected)
		hung.Store(true)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		go func() {
			time.Sleep(300 * time.Millisecond)
			m.receive(m.b, func(r *backup.Receiver) {
				r.Restorer, r.TakeoverLimit = foundReplica{r.Restorer, hung}, 10*time.Second
			})
		}()
		m.session.Failover(ctx)
		cancel()
		time.Sleep(time.Minute)
		rec, _ := m.records[m.b].Load(simDomain)
		if !m.domain.Runs() {
			m.t.Errorf("a minute later the domain runs nowhere: %v, last error %q; B's record %+v", m.session.Status().State, m.session.Status().LastError, rec)
		}
		hung.Store(false)
		time.Sleep(10 * time.Second)
	}, "none", "fence")
}
