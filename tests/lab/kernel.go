//go:build linux

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// unpackKernel writes the ELF kernel inside a bzImage to file. Xen and xl take either; unpacked here it need not be
// unpacked under emulation at every boot.
func unpackKernel(bzImage, file string) error {
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	payload, err := kernelPayload(image)
	if err != nil {
		return fmt.Errorf("%s: %w", bzImage, err)
	}
	tool, err := unpackTool(payload)
	if err != nil {
		return fmt.Errorf("%s: %w", bzImage, err)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	var stderr bytes.Buffer
	cmd := exec.Command(tool[0], tool[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(payload), out, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: unpack kernel with %s: %w: %s", bzImage, tool[0], err, stderr.Bytes())
	}
	return out.Close()
}

// kernelPayload finds the compressed kernel by the header that Linux's Documentation/arch/x86/boot.rst describes.
func kernelPayload(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1 // size of the real-mode part in sectors, less one
		headerMagic   = 0x202
		version       = 0x206
		payloadOffset = 0x248 // from the start of the protected-mode part
		payloadLength = 0x24c // includes the 4 bytes of unpacked size that follow the data
	)
	if len(image) < 0x250 || string(image[headerMagic:][:4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[version:]); v < 0x208 {
		return nil, fmt.Errorf("boot protocol %#x does not say where the kernel is", v)
	}
	sects := int(image[setupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffset:]))
	n := int(binary.LittleEndian.Uint32(image[payloadLength:]))
	if n < 4 || start > len(image) || n > len(image)-start {
		return nil, errors.New("kernel lies outside of the image")
	}
	return image[start : start+n-4], nil
}

func unpackTool(payload []byte) ([]string, error) {
	for _, f := range []struct {
		magic string
		tool  []string
	}{
		{"\xfd7zXZ", []string{"xz", "-dc"}},
		{"\x1f\x8b", []string{"gzip", "-dc"}},
		{"\x28\xb5\x2f\xfd", []string{"zstd", "-dc"}},
	} {
		if bytes.HasPrefix(payload, []byte(f.magic)) {
			return f.tool, nil
		}
	}
	return nil, fmt.Errorf("kernel compressed with something that starts with % x", payload[:min(4, len(payload))])
}
