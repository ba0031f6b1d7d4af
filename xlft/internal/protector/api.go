package protector

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
	"xlft/xlft/internal/control"
	"xlft/xlft/primary"
)

// Ended is the answer to a command that ends a session.
type Ended struct {
	Outcome primary.Outcome `json:"outcome"`
}

// A Resolution is an operator's word on a domain that waits for a decision.
type Resolution struct {
	Domain string    `json:"domain"`
	Word   xlft.Word `json:"word"`
	By     string    `json:"by"` // the operator
}

// serve answers the commands of a Client. Requests that end the session are
// answered when it has ended.
func serve(runDir string, s *primary.Session) (stop func(), err error) {
	path := control.Socket(runDir, s.Domain)
	l, err := control.Listen(path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return s.Status(), nil })
	control.Handle(mux, "POST /pace", func(r *http.Request) (any, error) {
		var words []string
		if err := json.NewDecoder(r.Body).Decode(&words); err != nil {
			return nil, err
		}
		return s.Pace(r.Context(), func(p xlft.Pacing) (xlft.Pacing, error) { return config.Repace(p, words) })
	})
	control.Handle(mux, "GET /decision", func(r *http.Request) (any, error) { return s.Decision(r.Context()) })
	control.Handle(mux, "POST /resolve", func(r *http.Request) (any, error) {
		var a Resolution
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			return nil, err
		}
		return s.Resolve(r.Context(), a.Word, a.By)
	})
	for what, end := range map[string]func(context.Context) (primary.Outcome, error){"POST /stop": s.Stop, "POST /failover": s.Failover} {
		control.Handle(mux, what, func(r *http.Request) (any, error) {
			o, err := end(r.Context())
			return Ended{o}, err
		})
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(l)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		srv.Shutdown(ctx)
		os.Remove(path)
	}, nil
}

// A Client asks the protector of a domain. Its errors are control.ErrDown if
// there is none.
type Client struct{ path string }

// NewClient returns a client of the protector whose socket is in runDir.
func NewClient(runDir, domain string) *Client { return &Client{control.Socket(runDir, domain)} }

// Status returns what the session says of itself.
func (c *Client) Status(ctx context.Context) (st primary.Status, err error) {
	err = control.Call(ctx, c.path, http.MethodGet, "/status", nil, &st)
	return st, err
}

// Pace changes when checkpoints are taken, by words such as "epoch_max=500ms", and
// returns what is in effect then. It lasts until the session ends.
func (c *Client) Pace(ctx context.Context, words []string) (p xlft.Pacing, err error) {
	err = control.Call(ctx, c.path, http.MethodPost, "/pace", words, &p)
	return p, err
}

// Decision returns what is known of a domain that waits for an operator's word.
func (c *Client) Decision(ctx context.Context) (d xlft.Decision, err error) {
	err = control.Call(ctx, c.path, http.MethodGet, "/decision", nil, &d)
	return d, err
}

// Resolve gives an operator's word, and returns when it is in effect.
func (c *Client) Resolve(ctx context.Context, a Resolution) (d xlft.Decision, err error) {
	err = control.Call(ctx, c.path, http.MethodPost, "/resolve", a, &d)
	return d, err
}

// Stop ends protection and returns how the session ended.
func (c *Client) Stop(ctx context.Context) (primary.Outcome, error) { return c.end(ctx, "/stop") }

// Failover moves the domain to its backup and returns how the session ended. On
// an error the session may go on.
func (c *Client) Failover(ctx context.Context) (primary.Outcome, error) {
	return c.end(ctx, "/failover")
}

func (c *Client) end(ctx context.Context, what string) (primary.Outcome, error) {
	var e Ended
	err := control.Call(ctx, c.path, http.MethodPost, what, nil, &e)
	return e.Outcome, err
}
