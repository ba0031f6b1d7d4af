package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"xlft/xlft/internal/control"
)

// lastAnswers bounds how long the end of Serve waits for answers in progress.
const lastAnswers = 2 * time.Second

// Serve serves Clients on one listener and NBD clients on the other, until ctx
// ends.
func (s *Server) Serve(ctx context.Context, commands, clients net.Listener) error {
	mux := http.NewServeMux()
	disk := func(f func(vdev string) (any, error)) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			return f(r.PathValue("vdev"))
		}
	}
	epoch := func(f func(uint64) error) func(*http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			var e uint64
			if _, err := fmt.Sscan(r.PathValue("epoch"), &e); err != nil {
				return nil, fmt.Errorf("epoch %q: %w", r.PathValue("epoch"), err)
			}
			return nil, f(e)
		}
	}
	control.Handle(mux, "GET /status", func(*http.Request) (any, error) { return s.Status(), nil })
	control.Handle(mux, "POST /attach/{vdev}", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		return s.Attach(r.PathValue("vdev"), User{q.Get("user"), q.Get("vm")})
	})
	control.Handle(mux, "POST /open/{vdev}", disk(func(vdev string) (any, error) { return nil, s.Open(vdev) }))
	control.Handle(mux, "POST /detach/{vdev}", func(r *http.Request) (any, error) {
		return nil, s.Detach(r.PathValue("vdev"), r.URL.Query().Get("user"))
	})
	control.Handle(mux, "POST /seal/{epoch}", epoch(s.Seal))
	control.Handle(mux, "POST /release/{epoch}", epoch(s.Release))
	control.Handle(mux, "POST /release-all", func(*http.Request) (any, error) { return nil, s.ReleaseAll() })
	control.Handle(mux, "POST /discard", func(*http.Request) (any, error) { return nil, s.Discard() })
	control.Handle(mux, "POST /drain", func(r *http.Request) (any, error) { return nil, s.Drain(r.Context()) })
	mux.HandleFunc("POST /replicate", s.serveReplicate)
	mux.HandleFunc("POST /verify", s.serveVerify)
	ctx, cancel := context.WithCancel(ctx)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }, // ends a replication
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.clients.Serve(ctx, clients) })
	wg.Go(func() {
		<-ctx.Done()
		// Requests are answered first: ctx ends because of the last detach.
		limit, cancel := context.WithTimeout(context.Background(), lastAnswers)
		defer cancel()
		srv.Shutdown(limit)
		srv.Close()
	})
	if err := srv.Serve(commands); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveReplicate answers with Reports, one JSON value after the other. The
// replication ends when the client closes the connection.
func (s *Server) serveReplicate(w http.ResponseWriter, r *http.Request) {
	var o Order
	enc := json.NewEncoder(w)
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		enc.Encode(Report{Error: err.Error()})
		return
	}
	flush := http.NewResponseController(w)
	err := s.Replicate(r.Context(), o, func(p Report) error {
		if err := enc.Encode(p); err != nil {
			return err
		}
		return flush.Flush()
	})
	if r.Context().Err() == nil {
		s.Log.Warn("the disks are not replicated any more", zap.Error(err))
		enc.Encode(Report{Error: err.Error()})
	}
}
