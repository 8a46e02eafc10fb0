package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/content"
	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/platforms"
	"github.com/containerd/containerd/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// The field of CommitSnapshotRequest that this client's library does not know: the number 5, a string.
const parentField = 5<<3 | 2

// watch stops the program at an event.
type watch struct {
	event string
	left  int64
}

func newWatch(text string) (*watch, error) {
	event, number, found := strings.Cut(text, ":")
	left, err := strconv.ParseInt(number, 10, 64)
	if !found || err != nil {
		return nil, fmt.Errorf("%q is not EVENT:NUMBER", text)
	}
	return &watch{event, left}, nil
}

func (w *watch) happened(event string) {
	if event == w.event && atomic.AddInt64(&w.left, -1) == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

// layer is one of an image, and the snapshot that it is unpacked into.
type layer struct {
	blob            ocispec.Descriptor
	diff, chain     digest.Digest
	parent          string // the name that its parent is committed as
	key, name       string
	labels          map[string]string
	mounts          []mount.Mount
	applied         chan error
	alreadyUnpacked bool
}

// unpacker does it for one image.
type unpacker struct {
	*snapshotter
	client   *containerd.Client
	watch    *watch
	parallel bool
	limit    *semaphore.Weighted
}

func unpack(ctx context.Context, address, socket, name string, unpacks int64, watch *watch) error {
	client, err := containerd.New(address)
	if err != nil {
		return err
	}
	defer client.Close()
	sn, err := connect(socket)
	if err != nil {
		return err
	}
	u := &unpacker{sn, client, watch, unpacks > 1, semaphore.NewWeighted(unpacks)}
	start := time.Now()
	layers, err := u.layers(ctx, name)
	if err != nil {
		return err
	}
	if err := u.all(ctx, layers); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Milliseconds())
	return nil
}

// layers reads the image, and looks which of its layers are there. containerd's own records say that in its place: it puts its namespace and a number, which is never used
// twice, before the names that it gives snapshots.
func (u *unpacker) layers(ctx context.Context, name string) ([]*layer, error) {
	image, err := u.client.ImageService().Get(ctx, name)
	if err != nil {
		return nil, err
	}
	store := u.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, image.Target, platforms.Default())
	if err != nil {
		return nil, err
	}
	data, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	there := map[string]string{}
	found, err := u.snapshotter.all(ctx)
	if err != nil {
		return nil, err
	}
	for name, info := range found {
		if info.Kind == snapshots.KindCommitted {
			there[name[strings.LastIndex(name, "/")+1:]] = name
		}
	}
	chains := identity.ChainIDs(append([]digest.Digest{}, config.RootFS.DiffIDs...))
	var layers []*layer
	number, parent := time.Now().UnixNano(), ""
	for i, blob := range manifest.Layers {
		chain := chains[i].String()
		this := &layer{blob: blob, diff: config.RootFS.DiffIDs[i], chain: chains[i], parent: parent, applied: make(chan error, 1)}
		this.key = fmt.Sprintf("default/%d/extract-%d-AAAA %s", number+int64(2*i), i, chain)
		this.name = fmt.Sprintf("default/%d/%s", number+int64(2*i+1), chain)
		this.labels = map[string]string{"containerd.io/snapshot.ref": chain, "containerd.io/snapshot/diff-id": this.diff.String()}
		if name, found := there[chain]; found {
			this.name, this.alreadyUnpacked = name, true
		}
		parent = this.name
		layers = append(layers, this)
	}
	return layers, nil
}

// all unpacks the layers. Those that are being applied when one fails are waited for, and given up.
func (u *unpacker) all(ctx context.Context, layers []*layer) error {
	var begun []*layer
	var failed error
	for _, layer := range layers {
		if layer.alreadyUnpacked {
			continue
		}
		if failed = u.begin(ctx, layer); failed != nil {
			break
		}
		begun = append(begun, layer)
		if !u.parallel {
			if failed = u.finish(ctx, layer, nil); failed != nil {
				break
			}
		}
	}
	if u.parallel {
		for _, layer := range begun {
			if err := u.finish(ctx, layer, failed); failed == nil {
				failed = err
			}
		}
	}
	return failed
}

// begin prepares the snapshot, and has the layer applied to it when it is its turn.
func (u *unpacker) begin(ctx context.Context, layer *layer) (err error) {
	parent := layer.parent
	if u.parallel {
		parent = ""
	}
	layer.mounts, err = u.Prepare(ctx, layer.key, parent, snapshots.WithLabels(layer.labels))
	if err != nil {
		return fmt.Errorf("prepare %s: %w", layer.key, err)
	}
	u.watch.happened("prepared")
	if err := u.limit.Acquire(ctx, 1); err != nil {
		return err
	}
	go func() {
		defer u.limit.Release(1)
		applied, err := u.client.DiffService().Apply(ctx, layer.blob, layer.mounts)
		if err == nil && applied.Digest != layer.diff {
			err = fmt.Errorf("%s is not the diff ID %s", applied.Digest, layer.diff)
		}
		u.watch.happened("applied")
		layer.applied <- err
	}()
	return nil
}

// finish commits the layer onto its parent, or gives it up.
func (u *unpacker) finish(ctx context.Context, layer *layer, failed error) error {
	err := <-layer.applied
	if err == nil && failed == nil {
		err = u.commit(ctx, layer)
	}
	if err == nil && failed == nil {
		u.watch.happened("committed")
		return nil
	}
	if removed := u.Remove(ctx, layer.key); removed != nil {
		fmt.Fprintf(os.Stderr, "remove %s: %v\n", layer.key, removed)
	}
	if err == nil {
		return failed
	}
	return fmt.Errorf("unpack %s: %w", layer.blob.Digest, err)
}

func (u *unpacker) commit(ctx context.Context, layer *layer) error {
	request := &snapshotsapi.CommitSnapshotRequest{Snapshotter: "rebase", Name: layer.name, Key: layer.key, Labels: layer.labels}
	if u.parallel && layer.parent != "" {
		request.XXX_unrecognized = appendField(parentField, layer.parent)
	}
	_, err := u.api.Commit(ctx, request)
	return err
}

// appendField is a field of a message: its key, its length, the text.
func appendField(key byte, text string) []byte {
	field := []byte{key}
	length := uint(len(text))
	for ; length >= 0x80; length >>= 7 {
		field = append(field, byte(length)|0x80)
	}
	field = append(field, byte(length))
	return append(field, text...)
}
