package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// ArbiterTypes are the kinds of arbiters.
var ArbiterTypes = []string{"etcd", "fence", "manual", "none"}

// kinds lists them for a message.
func kinds() string {
	return `"` + strings.Join(ArbiterTypes[:len(ArbiterTypes)-1], `", "`) + `" and "` + ArbiterTypes[len(ArbiterTypes)-1] + `"`
}

// arbiter reads [arbiter].
func (raw *rawConfig) arbiter(c *Config) (toml.Key, error) {
	if raw.Arbiter.Type == nil {
		return toml.Key{"arbiter", "type"}, fmt.Errorf("must be set: who decides which host runs a domain when they can't talk? %s are there, the last with accept_split_brain = true", kinds())
	}
	c.Arbiter.Type = *raw.Arbiter.Type
	set(&c.Arbiter.AcceptSplitBrain, raw.Arbiter.AcceptSplitBrain)
	switch {
	case !slices.Contains(ArbiterTypes, c.Arbiter.Type):
		return toml.Key{"arbiter", "type"}, fmt.Errorf("unknown arbiter %q: %s are there", c.Arbiter.Type, kinds())
	case c.Arbiter.Type == "none" && !c.Arbiter.AcceptSplitBrain:
		return toml.Key{"arbiter", "type"}, errors.New("\"none\" needs accept_split_brain = true: without an arbiter both hosts run the domain when the network between them breaks")
	case c.Arbiter.Type == "etcd" && raw.Arbiter.Etcd == nil:
		return toml.Key{"arbiter", "type"}, errors.New("\"etcd\" needs a table [arbiter.etcd] with its endpoints")
	}
	if e := raw.Arbiter.Etcd; e != nil {
		var key string
		var err error
		if c.Arbiter.Etcd, key, err = e.validate(); err != nil {
			return toml.Key{"arbiter", "etcd", key}, err
		}
	}
	c.Arbiter.CheckInterval, c.Arbiter.FenceAfter = time.Minute, 3*time.Second
	if raw.Arbiter.FenceAfter != nil {
		c.Arbiter.FenceAfter = time.Duration(*raw.Arbiter.FenceAfter)
	}
	if f := c.Arbiter.FenceAfter; f < 500*time.Millisecond || f > 5*time.Minute {
		return toml.Key{"arbiter", "fence_after"}, fmt.Errorf("%v is not between 500ms and 5m", f)
	}
	if raw.Arbiter.CheckInterval != nil {
		c.Arbiter.CheckInterval = time.Duration(*raw.Arbiter.CheckInterval)
	}
	if i := c.Arbiter.CheckInterval; i != 0 && (i < 10*time.Second || i > time.Hour) {
		return toml.Key{"arbiter", "check_interval"}, fmt.Errorf("%v is neither 0s nor between 10s and 1h", i)
	}
	return nil, nil
}

// validate returns the key that an error is about.
func (raw *rawEtcd) validate() (*Etcd, string, error) {
	e := &Etcd{Endpoints: raw.Endpoints, Prefix: "/xlft", Timeout: 5 * time.Second}
	if len(e.Endpoints) == 0 {
		return nil, "endpoints", errors.New("must be set: the URLs of the cluster's members, such as [\"https://192.0.2.5:2379\"]")
	}
	for i, text := range e.Endpoints {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, "endpoints", fmt.Errorf("%q is no URL such as \"https://192.0.2.5:2379\"", text)
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return nil, "endpoints", fmt.Errorf("%q is not encrypted: whoever can write to the network could give the domain to both hosts; \"http\" is for this host's own addresses, use \"https\"", text)
		}
		if first, _, _ := strings.Cut(e.Endpoints[0], ":"); first != u.Scheme {
			return nil, "endpoints", fmt.Errorf("%q and %q are not both encrypted", e.Endpoints[0], text)
		}
		if slices.Contains(e.Endpoints[:i], text) {
			return nil, "endpoints", fmt.Errorf("%q is there twice", text)
		}
	}
	set(&e.Prefix, raw.Prefix)
	if !strings.HasPrefix(e.Prefix, "/") || strings.HasSuffix(e.Prefix, "/") || strings.ContainsAny(e.Prefix, " \t\n'\"") {
		return nil, "prefix", fmt.Errorf("%q is no prefix such as \"/xlft\"", e.Prefix)
	}
	for _, f := range []struct {
		key string
		to  *string
		raw *string
	}{{"ca", &e.CA, raw.CA}, {"cert", &e.Cert, raw.Cert}, {"key", &e.Key, raw.Key}} {
		set(f.to, f.raw)
		if f.raw != nil && !strings.HasPrefix(*f.raw, "/") {
			return nil, f.key, fmt.Errorf("%q is no absolute path of a file", *f.raw)
		}
	}
	if (e.Cert == "") != (e.Key == "") {
		return nil, "cert", errors.New("cert and key belong together: set both, or none")
	}
	if raw.Timeout != nil {
		e.Timeout = time.Duration(*raw.Timeout)
	}
	if e.Timeout < time.Second || e.Timeout > time.Minute {
		return nil, "timeout", fmt.Errorf("%v is not between 1s and 1m", e.Timeout)
	}
	return e, "", nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
