package arbiter

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"xlft/xlft"
	"xlft/xlft/config"
)

// etcdBinary is the etcd that tests run: XLFT_ETCD, or Debian's etcd-server.
func etcdBinary(t *testing.T) string {
	t.Helper()
	name := os.Getenv("XLFT_ETCD")
	if name == "" {
		name = "etcd"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("XLFT_PEERS_REQUIRED") != "" {
			t.Fatal(err)
		}
		t.Skipf("no etcd server to test with: %v (\"scripts/dev/setup test\" installs Debian's, XLFT_ETCD names another)", err)
	}
	return path
}

// A server is an etcd on loopback, with a certificate, that wants one from its clients.
type server struct {
	t        *testing.T
	binary   string
	dir      string
	endpoint string
	peer     string
	cmd      *exec.Cmd
}

// serve starts an etcd, which ends with the test.
func serve(t *testing.T, more ...string) *server {
	t.Helper()
	s := &server{t: t, binary: etcdBinary(t), dir: t.TempDir(), endpoint: "https://" + free(t), peer: "http://" + free(t)}
	certificates(t, s.dir)
	s.start(more...)
	t.Cleanup(s.stop)
	return s
}

// free is an address that nothing listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) start(more ...string) {
	s.t.Helper()
	s.cmd = exec.Command(s.binary, append([]string{
		"--name", "test", "--data-dir", filepath.Join(s.dir, "data"), "--logger", "zap",
		"--listen-client-urls", s.endpoint, "--advertise-client-urls", s.endpoint,
		"--listen-peer-urls", s.peer, "--initial-advertise-peer-urls", s.peer, "--initial-cluster", "test=" + s.peer, "--initial-cluster-token", filepath.Base(s.dir) + s.peer,
		"--client-cert-auth", "--trusted-ca-file", filepath.Join(s.dir, "ca.crt"), "--cert-file", filepath.Join(s.dir, "server.crt"), "--key-file", filepath.Join(s.dir, "server.key"),
	}, more...)...)
	out, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	var said []string
	for in.Scan() {
		said = append(said, in.Text())
		if strings.Contains(in.Text(), "serving client") { // insecure, traffic, requests: it differs from version to version
			go io.Copy(io.Discard, out)
			return
		}
	}
	s.t.Fatalf("etcd does not serve:\n%s", strings.Join(said, "\n"))
}

func (s *server) stop() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *server) config(prefix string) config.Etcd {
	return config.Etcd{
		Endpoints: []string{s.endpoint}, Prefix: prefix, Timeout: 2 * time.Second,
		CA: filepath.Join(s.dir, "ca.crt"), Cert: filepath.Join(s.dir, "client.crt"), Key: filepath.Join(s.dir, "client.key"),
	}
}

// certificates writes a CA's certificate, and one of its for a server and one for a client.
func certificates(t *testing.T, dir string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: ca == nil,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if ca == nil {
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", "CERTIFICATE", der)
		write(name+".key", "EC PRIVATE KEY", private)
	}
}

// between is a fault on the way to etcd.
func between(w *world) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		lost := status.Error(codes.Unavailable, "the connection broke")
		switch w.is() {
		case deaf:
			return lost
		case stuck:
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
		err := invoke(ctx, method, req, reply, cc, opts...)
		switch r, txn := reply.(*etcdserverpb.TxnResponse); {
		case err != nil:
			return err
		case w.is() == mute && txn:
			return lost
		case w.is() == liar && txn: // it tells everybody that he was first
			r.Succeeded, r.Header.ClusterId = true, r.Header.ClusterId+1
		}
		return nil
	}
}

// One etcd serves all worlds, which have their own prefixes.
var worlds atomic.Int64

// etcds is a world with a real etcd.
func etcds(t *testing.T) *world {
	s := serve(t)
	c := s.config(fmt.Sprintf("/xlft-%d", worlds.Add(1)))
	w := &world{names: s.endpoint, timeout: c.Timeout, off: map[xlft.Side]bool{}}
	w.restart = func(t *testing.T) { s.stop(); s.start() }
	w.fresh = func(side xlft.Side) xlft.Arbiter {
		a := &Ledger{Asker: Asker{Log: zap.NewNop()}, Kind: "etcd", Host: string(side), Register: &Etcd{Etcd: c, Log: zap.NewNop(), dial: []grpc.DialOption{grpc.WithChainUnaryInterceptor(between(w))}}}
		if w.is() == none {
			if _, err := a.Identity(t.Context()); err != nil { // as before each protection
				t.Fatal(err)
			}
		}
		return a
	}
	w.begin()
	return w
}

// The answer of a transaction that came through is read back, linearizably; where there
// is nothing to be read, nothing is known.
func TestEtcdReadsBack(t *testing.T) {
	t.Parallel()
	s := serve(t)
	var txns, reads atomic.Int64
	drop := false // the transaction itself
	e := &Etcd{Etcd: s.config("/xlft"), Log: zap.NewNop()}
	if _, err := e.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.dial = []grpc.DialOption{grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		switch r := req.(type) {
		case *etcdserverpb.RangeRequest:
			reads.Add(1)
			if r.Serializable {
				t.Error("a read that is not linearizable")
			}
		case *etcdserverpb.TxnRequest:
			txns.Add(1)
			if drop {
				return status.Error(codes.Unavailable, "the connection broke")
			}
			invoke(ctx, method, req, reply, cc, opts...)
			return status.Error(codes.Unavailable, "the connection broke")
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	})}
	k := Key{"web 1/ä", "u", 3}
	there, id, err := e.First(t.Context(), k, []byte("mine"))
	if string(there) != "mine" || id == "" || err != nil || txns.Load() != 1 || reads.Load() != 2 {
		t.Errorf("%q, %q, %v after %d transactions and %d reads", there, id, err, txns.Load(), reads.Load())
	}
	there, _, err = e.First(t.Context(), k, []byte("theirs"))
	if string(there) != "mine" || err != nil {
		t.Errorf("second: %q, %v", there, err)
	}
	drop, e.Timeout = true, time.Second
	k.Generation++
	there, _, err = e.First(t.Context(), k, []byte("mine"))
	if there != nil || err == nil || !strings.Contains(err.Error(), s.endpoint) {
		t.Errorf("never carried out: %q, %v", there, err)
	}
	if txns.Load() < 4 {
		t.Errorf("given up after %d transactions in all", txns.Load())
	}
}

// Several endpoints: one that refuses and one that never answers cost nobody a claim.
// Endpoints of two clusters are refused.
func TestEtcdEndpoints(t *testing.T) {
	t.Parallel()
	s := serve(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := s.config("/xlft")
	c.Endpoints = []string{"https://" + free(t), "https://" + silent.Addr().String(), s.endpoint}
	e := &Etcd{Etcd: c, Log: zap.NewNop()}
	for g := range uint64(5) {
		there, _, err := e.First(t.Context(), Key{"web1", "u", g}, []byte("mine"))
		if string(there) != "mine" || err != nil {
			t.Errorf("%q, %v", there, err)
		}
	}
	if _, err := e.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	e.Endpoints = c.Endpoints[:2]
	for _, f := range []func() error{
		func() error { _, err := e.Probe(t.Context()); return err },
		func() error { _, _, err := e.First(t.Context(), Key{"web1", "u", 9}, []byte("mine")); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), c.Endpoints[0]) || !strings.Contains(err.Error(), c.Endpoints[1]) {
			t.Errorf("%v, which does not name both endpoints", err)
		}
	}
	alien := serve(t)
	for _, f := range []string{"ca.crt", "server.crt", "server.key"} { // one CA for both
		b, err := os.ReadFile(filepath.Join(s.dir, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(alien.dir, f), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	alien.stop()
	alien.start()
	e.Endpoints = []string{s.endpoint, alien.endpoint}
	if id, err := e.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "members of one cluster") {
		t.Errorf("two clusters: %q, %v", id, err)
	}
}

// Two servers that were each set up with etcd's defaults have one cluster ID, which is made
// from the addresses and the token: hosts that have one of them each do not agree.
func TestEtcdDefaults(t *testing.T) {
	t.Parallel()
	var names []string
	var all []*Ledger
	for _, host := range []string{"alpha", "beta"} {
		s := &server{t: t, binary: etcdBinary(t), dir: t.TempDir(), endpoint: "https://" + free(t), peer: "http://" + free(t)}
		certificates(t, s.dir)
		s.start("--name", "default", "--initial-advertise-peer-urls", "http://localhost:2380", "--initial-cluster", "default=http://localhost:2380", "--initial-cluster-token", "etcd-cluster")
		t.Cleanup(s.stop)
		a := &Ledger{Kind: "etcd", Host: host, Register: &Etcd{Etcd: s.config("/xlft"), Log: zap.NewNop()}}
		name, err := xlft.ArbiterName(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		names, all = append(names, name), append(all, a)
	}
	if names[0] != names[1] {
		return
	}
	t.Errorf("both hosts agree on %q", names[0])
	for i, side := range []xlft.Side{xlft.Primary, xlft.Backup} {
		won, err := all[i].Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: 3, Side: side, Peer: all[1-i].Host})
		t.Logf("%s: won %v, %v", side, won, err)
	}
}

// An etcd whose data were lost, and which comes up empty, is another one: the claims were in
// it.
func TestEtcdEmptied(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := &Ledger{Kind: "etcd", Host: "alpha", Register: &Etcd{Etcd: s.config("/xlft"), Log: zap.NewNop()}}
	claim := func(g uint64) (bool, error) {
		return a.Claim(t.Context(), xlft.Claim{Domain: "web1", UUID: "u", Generation: g, Side: xlft.Primary, Peer: "beta"})
	}
	if won, err := claim(3); !won || err != nil {
		t.Fatalf("%v, %v", won, err)
	}
	s.stop()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		t.Fatal(err)
	}
	s.start()
	if won, err := claim(4); won || !errors.Is(err, errReplaced) {
		t.Errorf("%v, %v", won, err)
	}
}

// Who does not trust the server's certificate, or has none of its own, learns why.
func TestEtcdCertificates(t *testing.T) {
	t.Parallel()
	s := serve(t)
	strangers := t.TempDir()
	certificates(t, strangers)
	for what, c := range map[string]struct {
		change func(*config.Etcd)
		want   string
	}{
		"another CA":     {func(c *config.Etcd) { c.CA = filepath.Join(strangers, "ca.crt") }, "certificate"},
		"no certificate": {func(c *config.Etcd) { c.Cert, c.Key = "", "" }, s.endpoint},
		"another's": {func(c *config.Etcd) {
			c.Cert, c.Key = filepath.Join(strangers, "client.crt"), filepath.Join(strangers, "client.key")
		}, s.endpoint},
		"a CA that is none":    {func(c *config.Etcd) { c.CA = c.Key }, "arbiter.etcd.ca"},
		"no such file":         {func(c *config.Etcd) { c.CA = "/nonexistent" }, "arbiter.etcd.ca: open /nonexistent"},
		"a key of another one": {func(c *config.Etcd) { c.Key = filepath.Join(strangers, "client.key") }, "arbiter.etcd.cert"},
	} {
		e := &Etcd{Etcd: s.config("/xlft"), Log: zap.NewNop()}
		e.Timeout = time.Second
		c.change(&e.Etcd)
		_, perr := e.Probe(t.Context())
		_, _, ferr := e.First(t.Context(), Key{"web1", "u", 3}, []byte("mine"))
		for _, err := range []error{perr, ferr} {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", what, err, c.want)
			}
		}
	}
}

// A check finds out what only a write would: that etcd has no room, or the client no
// right. It writes the register's word, once, and nothing else.
func TestEtcdCheckWritesNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, "--quota-backend-bytes", "100000")
	e := &Etcd{Etcd: s.config("/xlft"), Log: zap.NewNop()}
	if _, err := e.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := e.client(s.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := e.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := c.Get(t.Context(), "", clientv3.WithPrefix())
	if err != nil || len(r.Kvs) != 1 || r.Header.Revision != 2 {
		t.Errorf("%v, %v", r, err)
	}
	for i := 0; err == nil && i < 1000; i++ {
		_, err = c.Put(t.Context(), fmt.Sprint("fill", i), strings.Repeat("x", 10000))
	}
	if err == nil {
		t.Fatal("etcd is never full")
	}
	if _, err := e.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("a full etcd: %v", err)
	}
	e.Timeout = time.Second
	if there, _, err := e.First(t.Context(), Key{"web1", "u", 3}, []byte("mine")); there != nil || err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("a claim: %q, %v", there, err)
	}
}

// A claim that was cancelled ends at once.
func TestEtcdCancelled(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	e := &Etcd{Etcd: config.Etcd{Endpoints: []string{"http://" + silent.Addr().String()}, Prefix: "/xlft", Timeout: time.Hour}, Log: zap.NewNop()}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if c, err := silent.Accept(); err == nil {
			defer c.Close()
		}
		cancel()
	}()
	if there, _, err := e.First(ctx, Key{"web1", "u", 3}, []byte("mine")); there != nil || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%q, %v", there, err)
	}
}
