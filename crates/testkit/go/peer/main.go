// Serves containerd's own overlayfs snapshotter over a socket, and measures any snapshotter behind a socket.
//
//	peer serve ROOT SOCKET                 until it is killed
//	peer load SOCKET CLIENTS ROUNDS DEPTH  one line: nanoseconds of the median round, and of all rounds
//
// A round is Prepare, Mounts and Remove of a snapshot on an image of DEPTH layers, as a container's life has them.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/proxy"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 3 && arguments[0] == "serve":
		return serve(arguments[1], arguments[2])
	case len(arguments) == 5 && arguments[0] == "load":
		var numbers [3]int
		for i, word := range arguments[2:] {
			number, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			numbers[i] = number
		}
		return load(arguments[1], numbers[0], numbers[1], numbers[2])
	}
	return errors.New("usage: peer serve ROOT SOCKET | peer load SOCKET CLIENTS ROUNDS DEPTH")
}

// serve is the snapshotter as containerd itself has it by default.
func serve(root, socket string) error {
	sn, err := overlay.NewSnapshotter(root)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// connect gives each client a connection of its own, as each containerd has.
func connect(socket string) (snapshots.Snapshotter, error) {
	conn, err := grpc.Dial(dialer.DialAddress(socket), grpc.WithInsecure(),
		grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "measured"), nil
}

func load(socket string, clients, rounds, depth int) error {
	ctx := namespaces.WithNamespace(context.Background(), "load")
	parent, err := image(ctx, socket, depth)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	took := make([][]time.Duration, clients)
	failed := make([]error, clients)
	var all sync.WaitGroup
	start := time.Now()
	for client := 0; client < clients; client++ {
		all.Add(1)
		go func(client int) {
			defer all.Done()
			took[client], failed[client] = lives(ctx, socket, parent, client, rounds)
		}(client)
	}
	all.Wait()
	total := time.Since(start)
	var each []time.Duration
	for client := range took {
		if failed[client] != nil {
			return failed[client]
		}
		each = append(each, took[client]...)
	}
	sort.Slice(each, func(i, j int) bool { return each[i] < each[j] })
	fmt.Println(each[len(each)/2].Nanoseconds(), total.Nanoseconds())
	return nil
}

// lives is one client's rounds.
func lives(ctx context.Context, socket, parent string, client, rounds int) ([]time.Duration, error) {
	sn, err := connect(socket)
	if err != nil {
		return nil, err
	}
	// The first call connects, which is not measured.
	if _, err := sn.Stat(ctx, parent); err != nil {
		return nil, err
	}
	took := make([]time.Duration, 0, rounds)
	for round := 0; round < rounds; round++ {
		key := fmt.Sprintf("container-%d-%d", client, round)
		start := time.Now()
		if _, err := sn.Prepare(ctx, key, parent); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
		if _, err := sn.Mounts(ctx, key); err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		if err := sn.Remove(ctx, key); err != nil {
			return nil, fmt.Errorf("remove: %w", err)
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// image commits empty layers on one another, if they are not there yet.
func image(ctx context.Context, socket string, depth int) (string, error) {
	sn, err := connect(socket)
	if err != nil {
		return "", err
	}
	parent := ""
	for layer := 0; layer < depth; layer++ {
		name := fmt.Sprintf("layer-%d", layer)
		if _, err := sn.Stat(ctx, name); err != nil {
			key := fmt.Sprintf("unpack-%d", layer)
			if _, err := sn.Prepare(ctx, key, parent); err != nil {
				return "", err
			}
			if err := sn.Commit(ctx, name, key); err != nil {
				return "", err
			}
		}
		parent = name
	}
	return parent, nil
}
