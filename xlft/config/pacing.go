package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"xlft/xlft"
)

// What a domain's table says of when its checkpoints are taken.
type rawPacing struct {
	Mode      *string      `toml:"mode"`
	EpochMin  *rawDuration `toml:"epoch_min"`
	EpochMax  *rawDuration `toml:"epoch_max"`
	WindowMax *rawDuration `toml:"event_window_max"`
	RunShare  *float64     `toml:"run_share"`
	DirtyMax  *uint64      `toml:"dirty_max"`
}

// PacingKeys are the settings of a domain that can change while it is protected.
var PacingKeys = []string{"mode", "epoch_min", "epoch_max", "event_window_max", "run_share", "dirty_max"}

// Modes are the values of mode.
var Modes = []xlft.Mode{xlft.ModeEvent, xlft.ModeStrict, xlft.ModeInterval}

// epochMax is the default of epoch_max. In the modes in which output starts
// checkpoints it only bounds how old the backup's copy gets.
func epochMax(m xlft.Mode) time.Duration {
	if m == xlft.ModeInterval {
		return 200 * time.Millisecond
	}
	return time.Second
}

var defaultPacing = xlft.Pacing{
	Mode: xlft.ModeEvent, EpochMin: time.Millisecond, EpochMax: epochMax(xlft.ModeEvent),
	WindowMax: 500 * time.Millisecond, RunShare: 0.5, DirtyMax: 16384,
}

// mostShare leaves checkpoints some time.
const mostShare = 0.95

// apply changes p. A mode takes epoch_max along, unless that was set to something
// else than the default. An error comes with the key that it is about.
func (raw rawPacing) apply(p xlft.Pacing) (_ xlft.Pacing, key string, _ error) {
	if raw.Mode != nil {
		m := xlft.Mode(*raw.Mode)
		if !slices.Contains(Modes, m) {
			return p, "mode", fmt.Errorf("%q is none of \"event\", \"strict\" and \"interval\"", m)
		}
		if p.EpochMax == epochMax(p.Mode) {
			p.EpochMax = epochMax(m)
		}
		p.Mode = m
	}
	set(&p.DirtyMax, raw.DirtyMax)
	if set(&p.RunShare, raw.RunShare); !(p.RunShare >= 0 && p.RunShare <= mostShare) { // NaN is neither
		return p, "run_share", fmt.Errorf("%v is not between 0 and %v", p.RunShare, mostShare)
	}
	for _, v := range []limits{
		{"epoch_max", &p.EpochMax, raw.EpochMax, 5 * time.Millisecond, time.Minute},
		{"epoch_min", &p.EpochMin, raw.EpochMin, 0, time.Second},
		{"event_window_max", &p.WindowMax, raw.WindowMax, time.Millisecond, time.Minute},
	} {
		if err := v.apply(); err != nil {
			return p, v.key, err
		}
	}
	switch {
	case p.EpochMin > p.EpochMax:
		return p, "epoch_min", fmt.Errorf("%v is more than epoch_max, %v", p.EpochMin, p.EpochMax)
	case p.EpochMin > p.WindowMax:
		return p, "epoch_min", fmt.Errorf("%v is more than event_window_max, %v", p.EpochMin, p.WindowMax)
	}
	return p, "", nil
}

// limits are those of a duration.
type limits struct {
	key      string
	dst      *time.Duration
	src      *rawDuration
	min, max time.Duration
}

func (v limits) apply() error {
	if v.src != nil {
		*v.dst = time.Duration(*v.src)
	}
	if *v.dst < v.min || *v.dst > v.max {
		return fmt.Errorf("%v is not between %v and %v", *v.dst, v.min, v.max)
	}
	return nil
}

// Repace returns p changed by words such as "epoch_max=500ms", which mean what the
// same keys do in a domain's table.
func Repace(p xlft.Pacing, words []string) (xlft.Pacing, error) {
	var raw rawPacing
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok {
			return p, fmt.Errorf("%q is not of the form KEY=VALUE", w)
		}
		if err := raw.set(key, value); err != nil {
			return p, fmt.Errorf("%s: %w", key, err)
		}
	}
	is, key, err := raw.apply(p)
	if err != nil {
		return p, fmt.Errorf("%s: %w", key, err)
	}
	return is, nil
}

func (raw *rawPacing) set(key, value string) error {
	duration := func(dst **rawDuration) error {
		*dst = new(rawDuration)
		return (*dst).UnmarshalText([]byte(value))
	}
	switch key {
	case "mode":
		raw.Mode = &value
	case "epoch_min":
		return duration(&raw.EpochMin)
	case "epoch_max":
		return duration(&raw.EpochMax)
	case "event_window_max":
		return duration(&raw.WindowMax)
	case "run_share":
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return fmt.Errorf("%q is no number such as 0.5", value)
		}
		raw.RunShare = &f
	case "dirty_max":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no number of pages", value)
		}
		raw.DirtyMax = &n
	default:
		return fmt.Errorf("no setting that can change while a domain is protected; %s can", strings.Join(PacingKeys, ", "))
	}
	return nil
}
