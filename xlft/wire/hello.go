package wire

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const magic = "xlft"

// features are what this side can do beyond the version's minimum.
var features = []string{FeatureS2, FeatureLines, FeatureVerify, FeatureSectors}

// Greet opens a connection from the primary's side: it sends Hello and waits
// for the answer, at most timeout. The answer has the version and the features
// that both sides have.
func Greet(c *Conn, kind ConnKind, session, software string, timeout time.Duration) (Hello, error) {
	return greet(c, Hello{Kind: kind, Session: session, Software: software}, timeout)
}

func greet(c *Conn, h Hello, timeout time.Duration) (r Hello, err error) {
	defer within(c, timeout)()
	h.Magic, h.VersionMin, h.VersionMax, h.Features = magic, VersionMin, VersionMax, features
	if err := c.WriteJSON(TypeHello, 0, h); err != nil {
		return r, fmt.Errorf("greet peer: %w", err)
	}
	if err := c.Expect(TypeHello, &r); err != nil {
		return r, fmt.Errorf("greet peer: %w", err)
	}
	if r.PageCache < 0 || r.PageCache > h.PageCache {
		return r, fmt.Errorf("greet peer: it keeps %d bytes of pages, asked for %d", r.PageCache, h.PageCache)
	}
	if r.Magic != magic || r.VersionMin != r.VersionMax || r.VersionMin < VersionMin || r.VersionMax > VersionMax {
		return r, fmt.Errorf("greet peer: bad answer %+v", r)
	}
	return r, nil
}

// Welcome is the backup's half of Greet; of pages it keeps pageCache bytes at most. The
// result has what the answer has of features and pages. On an error the peer has been told
// why; the caller closes the connection and logs.
func Welcome(c *Conn, software string, pageCache int64, timeout time.Duration) (Hello, error) {
	defer within(c, timeout)()
	var h Hello
	if err := c.Expect(TypeHello, &h); err != nil {
		var frame *FrameError
		if errors.As(err, &frame) {
			c.WriteJSON(TypeRefuse, 0, Refusal{Code: CodeProtocol, Reason: err.Error()})
		}
		return h, fmt.Errorf("welcome peer: %w", err)
	}
	refuse := func(code Code, reason string) (Hello, error) {
		c.WriteJSON(TypeRefuse, 0, Refusal{Code: code, Reason: reason})
		return h, fmt.Errorf("welcome peer: %s", reason)
	}
	if h.Magic != magic {
		return refuse(CodeProtocol, "not an xlft peer")
	}
	if h.VersionMin > VersionMax || h.VersionMax < VersionMin || h.VersionMin > h.VersionMax {
		return refuse(CodeVersion, fmt.Sprintf("peer (%.40q) speaks protocol %d to %d, this host %d to %d: update the older one",
			h.Software, h.VersionMin, h.VersionMax, VersionMin, VersionMax))
	}
	switch h.Kind {
	case KindControl, KindData, KindDisk:
		if len(h.Session) != 32 {
			return refuse(CodeProtocol, "session id is not 32 hex digits")
		}
	case KindQuery:
	default:
		return refuse(CodeProtocol, fmt.Sprintf("unknown connection kind %.20q", h.Kind))
	}
	v := min(h.VersionMax, VersionMax)
	h.Features = slices.DeleteFunc(slices.Clone(h.Features), func(f string) bool { return !slices.Contains(features, f) })
	h.PageCache = max(0, min(h.PageCache, pageCache))
	if !slices.Contains(h.Features, FeatureLines) {
		h.PageCache = 0
	}
	if err := c.WriteJSON(TypeHello, 0, Hello{
		Magic: magic, VersionMin: v, VersionMax: v, Features: h.Features, Software: software,
		Kind: h.Kind, Session: h.Session, PageCache: h.PageCache,
	}); err != nil {
		return h, fmt.Errorf("welcome peer: %w", err)
	}
	return h, nil
}
