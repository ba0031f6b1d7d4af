package arbiter

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"xlft/xlft"
	"xlft/xlft/config"
)

// Etcd is a Register in etcd. A claim is a key that one transaction creates if it
// is not there and reads if it is (etcd's API reference, "Transaction": the compare of a create
// revision with 0 holds for a key that does not exist). Keys have no lease: a claim
// that ran out could be won again.
//
// Each call has connections of its own: none is left from before a network broke, and
// certificates that were renewed are read.
type Etcd struct {
	config.Etcd
	Log *zap.Logger

	dial []grpc.DialOption // a test's
	said xlft.Said
}

// Where is Register's.
func (e *Etcd) Where(k Key) (place, remove string) {
	return "the key " + e.key(k), "etcdctl del " + e.key(k)
}

func (e *Etcd) key(k Key) string {
	return path.Join(append([]string{e.Prefix, "claims"}, k.parts()...)...)
}

// client returns a client of some endpoints. It does not wait for a connection.
func (e *Etcd) client(endpoints ...string) (*clientv3.Client, error) {
	t, err := e.tls(endpoints[0])
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: t, Logger: zap.NewNop(), DialOptions: e.dial})
}

// tls returns nil for an endpoint that has none.
func (e *Etcd) tls(endpoint string) (*tls.Config, error) {
	if !strings.HasPrefix(endpoint, "https:") {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, fmt.Errorf("arbiter.etcd.ca: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("arbiter.etcd.ca: %s has no certificate", e.CA)
		}
	}
	if e.Cert != "" {
		pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
		if err != nil {
			return nil, fmt.Errorf("arbiter.etcd.cert and key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// reach says why no connection to an endpoint can be had, which the client does not
// say of one that it waited for; nil if it can.
func (e *Etcd) reach(endpoint string) error {
	t, err := e.tls(endpoint)
	if err != nil {
		return err
	}
	_, address, _ := strings.Cut(endpoint, "://")
	d := &net.Dialer{Timeout: e.Timeout / 10}
	if t == nil {
		c, err := d.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err
	}
	c, err := tls.DialWithDialer(d, "tcp", address, t)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(e.Timeout / 10))
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err // that the server wants a certificate comes after the handshake
	}
	return nil
}

// tries is how many answers that do not come First waits for, one after another: with
// several endpoints each try goes to the next.
const tries = 3

// First is Register's.
func (e *Etcd) First(ctx context.Context, k Key, value []byte) (there []byte, id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	c, err := e.client(e.Endpoints...)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	key := e.key(k)
	var why error // that a try took too long says less than any other error
	for {
		there, id, err = e.create(ctx, c, key, string(value))
		if err == nil {
			return there, id, nil
		}
		if why == nil || !errors.Is(err, context.DeadlineExceeded) {
			why = err
		}
		// Whether the transaction was carried out is not known. The read is
		// linearizable: what it finds is what everybody finds from now on. What it does
		// not find may still come.
		if there, id, rerr := e.read(ctx, c, key); rerr == nil && there != nil {
			return there, id, nil
		}
		select {
		case <-time.After(e.Timeout / 50):
		case <-ctx.Done():
			for _, endpoint := range e.Endpoints {
				why = errors.Join(why, e.reach(endpoint))
			}
			return nil, "", fmt.Errorf("no answer from %s within %v: %w", strings.Join(e.Endpoints, ", "), e.Timeout, why)
		}
	}
}

func (e *Etcd) create(ctx context.Context, c *clientv3.Client, key, value string) (there []byte, id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.Timeout/tries)
	defer cancel()
	word := clientv3.OpGet(e.wordKey())
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(word, clientv3.OpPut(key, value)).Else(word, clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		return nil, "", err
	case len(r.Responses) != 2:
		return nil, "", errNoEtcd
	}
	id = e.id(r.Header, r.Responses[0].GetResponseRange().GetKvs())
	switch kvs := r.Responses[1].GetResponseRange().GetKvs(); {
	case r.Succeeded:
		return []byte(value), id, nil
	case len(kvs) != 1:
		return nil, "", fmt.Errorf("the answer says that %s is there, and does not show it", key)
	default:
		return kvs[0].Value, id, nil
	}
}

// read returns the value of a key, nil if it is not there.
func (e *Etcd) read(ctx context.Context, c *clientv3.Client, key string) (there []byte, id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.Timeout/tries)
	defer cancel()
	r, err := c.Get(ctx, key)
	if err != nil || len(r.Kvs) != 1 {
		return nil, "", err
	}
	w, err := c.Get(ctx, e.wordKey())
	if err != nil {
		return nil, "", err
	}
	return r.Kvs[0].Value, e.id(w.Header, w.Kvs), nil
}

var errNoEtcd = errors.New("an answer that no etcd gives")

// wordKey is where the word is that tells the register from any other. A cluster's ID does
// not: it is made from addresses and a token, so that all servers that were set up with
// etcd's defaults have the same one, and one that lost its data has its old one.
func (e *Etcd) wordKey() string { return path.Join(e.Prefix, "claims", "-") }

// id is the cluster that answers, as etcdctl prints it, where in it the claims are, and
// the register's word; "" if it has none.
func (e *Etcd) id(h *etcdserverpb.ResponseHeader, word []*mvccpb.KeyValue) string {
	if h.GetClusterId() == 0 || len(word) != 1 || len(word[0].Value) == 0 {
		return ""
	}
	return fmt.Sprintf("%x%s %s", h.GetClusterId(), e.Prefix, word[0].Value)
}

// Probe is Register's: it asks every endpoint for a transaction that is refused where a
// claim would be, for want of a right or of room. It writes the register's word if there
// is none, and else nothing. One endpoint that can is enough; those that can't are logged.
func (e *Etcd) Probe(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, e.Timeout/2)
	defer cancel()
	ids, errs := make([]string, len(e.Endpoints)), make([]error, len(e.Endpoints))
	var wg sync.WaitGroup
	for i, endpoint := range e.Endpoints {
		wg.Go(func() { ids[i], errs[i] = e.probe(ctx, endpoint) })
	}
	wg.Wait()
	var id, from string
	for i, endpoint := range e.Endpoints {
		switch {
		case errs[i] != nil:
			errs[i] = fmt.Errorf("%s: %w", endpoint, errors.Join(errs[i], e.reach(endpoint)))
		case id != "" && ids[i] != id:
			return "", fmt.Errorf("%s is of cluster %s, and %s of cluster %s: arbiter.etcd.endpoints must be members of one cluster", from, id, endpoint, ids[i])
		default:
			id, from = ids[i], endpoint
		}
		if text := fmt.Sprint(errs[i]); e.said.New(endpoint, text) && errs[i] != nil {
			e.Log.Warn("an etcd endpoint does not answer", zap.Error(errs[i]))
		}
	}
	if id == "" {
		return "", errors.Join(errs...)
	}
	return id, nil
}

func (e *Etcd) probe(ctx context.Context, endpoint string) (string, error) {
	c, err := e.client(endpoint)
	if err != nil {
		return "", err
	}
	defer c.Close()
	key, word := e.wordKey(), rand.Text()
	get := clientv3.OpGet(key)
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, word), get).Else(get).Commit()
	if err != nil {
		return "", err
	}
	var there []*mvccpb.KeyValue
	if n := len(r.Responses); n > 0 {
		there = r.Responses[n-1].GetResponseRange().GetKvs()
	}
	id := e.id(r.Header, there)
	if id == "" {
		return "", errNoEtcd
	}
	return id, nil
}
