// Unpacks an image into a snapshotter behind a socket in the way of containerd 2.2, which no Debian has yet: all layers at once, each prepared without a
// parent, and joined in order at commit. What applies the layers is a containerd that runs.
//
//	rebase unpack ADDRESS SOCKET IMAGE UNPACKS [EVENT:NUMBER]
//	rebase tree SOCKET            the tree of the topmost layer, a line for each entry
//	rebase read FOLDER            the same of a folder
//	rebase clear SOCKET           removes all snapshots
//
// UNPACKS layers are applied at once; with 1 each is prepared on its parent, one after the other, as containerd does it where a snapshotter cannot join them.
// `unpack` prints the milliseconds that it took. At the event (`prepared`, `applied`, `committed`) of that number the program stops itself with SIGSTOP, so that a test can end
// it, or the snapshotter, in the middle.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "rebase:", err)
		os.Exit(1)
	}
}

func run(words []string) error {
	ctx := namespaces.WithNamespace(context.Background(), "default")
	switch {
	case (len(words) == 5 || len(words) == 6) && words[0] == "unpack":
		unpacks, err := strconv.ParseInt(words[4], 10, 64)
		if err != nil {
			return err
		}
		watch := &watch{}
		if len(words) == 6 {
			if watch, err = newWatch(words[5]); err != nil {
				return err
			}
		}
		return unpack(ctx, words[1], words[2], words[3], unpacks, watch)
	case len(words) == 2 && words[0] == "tree":
		return tree(ctx, words[1])
	case len(words) == 2 && words[0] == "read":
		return read(words[1])
	case len(words) == 2 && words[0] == "clear":
		return remove(ctx, words[1])
	}
	return errors.New("usage: rebase unpack ADDRESS SOCKET IMAGE UNPACKS [EVENT:NUMBER] | tree SOCKET | read FOLDER | clear SOCKET")
}

// snapshotter is one behind a socket: the calls as they are, and as containerd's own client has them.
type snapshotter struct {
	snapshots.Snapshotter
	api snapshotsapi.SnapshotsClient
}

func connect(socket string) (*snapshotter, error) {
	conn, err := grpc.Dial(dialer.DialAddress(socket), grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return nil, err
	}
	api := snapshotsapi.NewSnapshotsClient(conn)
	return &snapshotter{proxy.NewSnapshotter(api, "rebase"), api}, nil
}

// all are the snapshots, by name.
func (s *snapshotter) all(ctx context.Context) (map[string]snapshots.Info, error) {
	found := map[string]snapshots.Info{}
	return found, s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	})
}

// tree prints the tree of the committed snapshot that no other lies on.
func tree(ctx context.Context, socket string) error {
	sn, err := connect(socket)
	if err != nil {
		return err
	}
	found, err := sn.all(ctx)
	if err != nil {
		return err
	}
	var tops []string
	for name, info := range found {
		if info.Kind == snapshots.KindCommitted && !isParent(found, name) {
			tops = append(tops, name)
		}
	}
	if len(tops) != 1 {
		return fmt.Errorf("no layer is topmost, or several are: %q", tops)
	}
	const key = "default/0/look"
	mounts, err := sn.View(ctx, key, tops[0])
	if err != nil {
		return err
	}
	if err := mount.WithTempMount(ctx, mounts, read); err != nil {
		return err
	}
	return sn.Remove(ctx, key)
}

// remove takes away all snapshots, children first, as garbage collection does.
func remove(ctx context.Context, socket string) error {
	sn, err := connect(socket)
	if err != nil {
		return err
	}
	left, err := sn.all(ctx)
	if err != nil {
		return err
	}
	for len(left) > 0 {
		for name := range left {
			if isParent(left, name) {
				continue
			}
			if err := sn.Remove(ctx, name); err != nil {
				return err
			}
			delete(left, name)
		}
	}
	return nil
}

func isParent(all map[string]snapshots.Info, name string) bool {
	for _, info := range all {
		if info.Parent == name {
			return true
		}
	}
	return false
}
