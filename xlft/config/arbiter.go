package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// ArbiterTypes are the kinds of arbiters.
var ArbiterTypes = []string{"etcd", "fence", "file", "manual", "none"}

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
	if c.Arbiter.Type == "file" && raw.Arbiter.File == nil {
		return toml.Key{"arbiter", "type"}, errors.New("\"file\" needs a table [arbiter.file] with its directory")
	}
	if f := raw.Arbiter.File; f != nil {
		var key string
		var err error
		if c.Arbiter.File, key, err = f.validate(); err != nil {
			return toml.Key{"arbiter", "file", key}, err
		}
	}
	if e := raw.Arbiter.Etcd; e != nil {
		var key string
		var err error
		if c.Arbiter.Etcd, key, err = e.validate(); err != nil {
			return toml.Key{"arbiter", "etcd", key}, err
		}
	}
	for i, text := range raw.Arbiter.Ping {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() || a.IsMulticast() {
			return toml.Key{"arbiter", "ping"}, fmt.Errorf("%q is no IP address of a router, or of another host outside of both, such as \"192.0.2.1\"", text)
		}
		if a.IsLoopback() {
			return toml.Key{"arbiter", "ping"}, fmt.Errorf("%s is this host itself, and answers always", a)
		}
		if slices.Contains(c.Arbiter.Ping[:i], a) {
			return toml.Key{"arbiter", "ping"}, fmt.Errorf("%s is there twice", a)
		}
		c.Arbiter.Ping = append(c.Arbiter.Ping, a)
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

// validate returns the key that an error is about.
func (raw *rawFile) validate() (*File, string, error) {
	f := &File{Timeout: 10 * time.Second}
	if raw.Directory == nil || !path.IsAbs(*raw.Directory) || path.Clean(*raw.Directory) == "/" {
		return nil, "directory", errors.New("must be set: the absolute path of a directory that both hosts mount")
	}
	f.Directory = path.Clean(*raw.Directory)
	if raw.Timeout != nil {
		f.Timeout = time.Duration(*raw.Timeout)
	}
	if f.Timeout < time.Second || f.Timeout > time.Minute {
		return nil, "timeout", fmt.Errorf("%v is not between 1s and 1m", f.Timeout)
	}
	return f, "", nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// validate returns the key within the table that an error is about.
func (raw *rawFence) validate() (*Fence, toml.Key, error) {
	if raw == nil {
		return nil, nil, nil
	}
	f := new(Fence)
	if raw.Delay != nil {
		f.Delay = time.Duration(*raw.Delay)
	}
	if f.Delay < 0 || f.Delay > 5*time.Minute {
		return nil, toml.Key{"delay"}, fmt.Errorf("%v is not between 0s and 5m", f.Delay)
	}
	single := raw.Agent != nil || raw.Timeout != nil || raw.Options != nil
	switch {
	case raw.Levels != nil && single:
		return nil, toml.Key{"levels"}, errors.New("agent, options and timeout are those of the only agent: put them into a level")
	case raw.Levels != nil && len(raw.Levels) == 0:
		return nil, toml.Key{"levels"}, errors.New("there is none")
	case raw.Levels == nil:
		a, err := raw.rawAgent.validate()
		if err != nil {
			return nil, nil, err
		}
		f.Levels = [][]FenceAgent{{a}}
		return f, nil, nil
	}
	for i, level := range raw.Levels {
		if len(level) == 0 {
			return nil, toml.Key{"levels"}, fmt.Errorf("level %d has no agent", i+1)
		}
		var all []FenceAgent
		for _, r := range level {
			a, err := r.validate()
			if err != nil {
				return nil, toml.Key{"levels"}, fmt.Errorf("level %d: %w", i+1, err)
			}
			all = append(all, a)
		}
		f.Levels = append(f.Levels, all)
	}
	return f, nil, nil
}

func (raw *rawAgent) validate() (a FenceAgent, err error) {
	a = FenceAgent{Timeout: time.Minute, Options: map[string]string{}}
	if raw.Agent == nil || !strings.HasPrefix(*raw.Agent, "/") {
		return a, errors.New("agent must be set: the absolute path of a fence agent, such as \"/usr/sbin/fence_ipmilan\"")
	}
	a.Agent = *raw.Agent
	for k, v := range raw.Options {
		switch v.(type) {
		case string, int64, float64, bool:
		default:
			return a, fmt.Errorf("option %s is neither a string nor a number nor true or false", k)
		}
		a.Options[k] = fmt.Sprint(v)
		switch {
		case strings.ContainsAny(k+a.Options[k], "\n") || strings.Contains(k, "="):
			return a, fmt.Errorf("option %q can't be given to an agent", k)
		case k == "action" || k == "option": // the latter is its name of earlier (FenceAgentAPI)
			return a, fmt.Errorf("option %q can't be given to an agent: xlft says what it is to do", k)
		case k == "method" && a.Options[k] == "cycle":
			return a, errors.New("method = \"cycle\" switches a host on again, and nobody can see that it was off: leave it out")
		case k == "delay":
			return a, errors.New("the agent's own delay would hold up the host that runs the domain too: set the delay of the table")
		}
	}
	if raw.Timeout != nil {
		a.Timeout = time.Duration(*raw.Timeout)
	}
	if a.Timeout < time.Second || a.Timeout > time.Hour {
		return a, fmt.Errorf("timeout %v is not between 1s and 1h", a.Timeout)
	}
	return a, nil
}
