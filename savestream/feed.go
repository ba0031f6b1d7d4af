package savestream

import "encoding/binary"

// LibxlHeader returns the 16 bytes that start a libxl stream.
//
// With checkpointed_stream = REMUS libxl_domain_create_restore expects on its
// descriptor, as read in libxl_stream_read.c and xg_sr_restore.c:
//
//	LibxlHeader LibxcContext  epoch CheckpointEnd  epoch CheckpointEnd  ...
//
// where an epoch is the bytes of a libxc stream up to and with a CHECKPOINT
// record (the first one starts with the libxc headers).
//
//   - libxl reads its own records after every libxc CHECKPOINT, the first one
//     too, until CHECKPOINT_END, and only then lets libxc apply the epoch. An
//     end of file before CHECKPOINT_END makes libxc complete from the epoch
//     before; during the first epoch it is an error.
//   - A PVH or PV domain has no record of its own at a checkpoint. libxl even
//     fails on EMULATOR_XENSTORE_DATA and EMULATOR_CONTEXT unless the domain's
//     type is HVM. An HVM domain with a device model needs EMULATOR_CONTEXT
//     (and EMULATOR_XENSTORE_DATA, if any) before each CHECKPOINT_END: a
//     LibxlEncoder writes them.
//   - Records that libxl does not know make it fail, optional ones too.
//   - To take over, close the descriptor after a CheckpointEnd. Nothing else is
//     read after libxc is done, neither libxl's END nor anything before it. A
//     libxc END has the same effect as the end of file: records since the last
//     CHECKPOINT are dropped.
//   - To give up, write FailingRecords: the end of the file would have libxl
//     build the domain's devices first, with all their hotplug scripts.
func LibxlHeader() []byte {
	b := binary.BigEndian.AppendUint64(nil, libxlIdent)
	b = binary.BigEndian.AppendUint32(b, libxlVersion)
	return binary.BigEndian.AppendUint32(b, 0) // little-endian, not legacy
}

// LibxcContextRecord returns the 8 bytes of the libxl record behind which the
// libxc stream starts.
func LibxcContextRecord() []byte { return appendRecord(nil, uint32(LibxcContext), nil) }

// CheckpointEndRecord returns the 8 bytes of the libxl record that follows
// each epoch.
func CheckpointEndRecord() []byte { return appendRecord(nil, uint32(CheckpointEnd), nil) }

// FailingRecords returns the 24 bytes that make a restore which stands between
// two epochs fail: a mandatory record of an unknown type. libxc looks at it
// with the CHECKPOINT behind it.
func FailingRecords() []byte {
	const unknown = optionalBit - 1
	b := appendRecord(nil, unknown, nil)
	b = appendRecord(b, uint32(Checkpoint), nil)
	return append(b, CheckpointEndRecord()...)
}

// LibxlEndRecord returns the 8 bytes of the libxl record that ends a plain
// stream, after libxc's END.
func LibxlEndRecord() []byte { return appendRecord(nil, uint32(LibxlEnd), nil) }

// EndRecord returns the 8 bytes of libxc's END.
func EndRecord() []byte { return appendRecord(nil, uint32(End), nil) }
