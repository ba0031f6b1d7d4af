package announce_test

import (
	"bytes"
	"encoding/hex"
	"net"
	"testing"

	"xlft/xlft/internal/announce"
)

func TestFrame(t *testing.T) {
	mac, _ := net.ParseMAC("00:16:3e:20:00:10")
	got := announce.Frame(mac)
	want, _ := hex.DecodeString("ffffffffffff" + "00163e200010" + "8035" + // to all, from mac, RARP
		"0001" + "0800" + "06" + "04" + "0003" + // Ethernet, IPv4, request reverse
		"00163e200010" + "00000000" + "00163e200010" + "00000000" +
		"000000000000000000000000000000000000")
	if !bytes.Equal(got, want) {
		t.Errorf("frame % x\nwant  % x", got, want)
	}
	if err := announce.Send("lo", mac[:5]); err == nil {
		t.Error("five bytes are no address")
	}
	if err := announce.Send("nonexistent0", mac); err == nil {
		t.Error("announced on no interface")
	}
}
