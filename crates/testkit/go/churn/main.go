// Makes containers through containerd, writes into them and removes them, by many clients at once.
//
//	churn ADDRESS SNAPSHOTTER IMAGE CLIENTS CONTAINERS
//
// It prints a line for each container that is done. What fails is tried again for a minute: a snapshotter may be killed
// and started again meanwhile. What a container has written must be there when it is looked at later.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/oci"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) != 5 {
		return errors.New("usage: churn ADDRESS SNAPSHOTTER IMAGE CLIENTS CONTAINERS")
	}
	clients, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	containers, err := strconv.ParseInt(arguments[4], 10, 64)
	if err != nil {
		return err
	}
	var next int64
	failed := make(chan error, clients)
	var all sync.WaitGroup
	for n := 0; n < clients; n++ {
		c, err := newClient(arguments[0], arguments[1], arguments[2])
		if err != nil {
			return err
		}
		all.Add(1)
		go func() {
			defer all.Done()
			defer c.Close()
			for {
				number := atomic.AddInt64(&next, 1)
				if number > containers {
					return
				}
				if err := c.life(fmt.Sprintf("churn-%d", number)); err != nil {
					failed <- err
					return
				}
				fmt.Println(number)
			}
		}()
	}
	all.Wait()
	close(failed)
	return <-failed
}

// client is one of those that work at once, with a connection of its own.
type client struct {
	*containerd.Client
	ctx         context.Context
	snapshotter string
	image       containerd.Image
}

func newClient(address, snapshotter, name string) (*client, error) {
	api, err := containerd.New(address)
	if err != nil {
		return nil, err
	}
	ctx := namespaces.WithNamespace(context.Background(), "default")
	image, err := api.GetImage(ctx, name)
	if err != nil {
		return nil, err
	}
	return &client{Client: api, ctx: ctx, snapshotter: snapshotter, image: image}, nil
}

// life is that of one container: made, written to, looked at, removed. A lease keeps its snapshot from garbage collection also between an attempt to
// make the container that failed and the next.
func (c *client) life(id string) (err error) {
	leased, done, err := c.WithLease(c.ctx)
	if err != nil {
		return err
	}
	defer func() {
		if undone := done(leased); err == nil {
			err = undone
		}
	}()
	c = &client{Client: c.Client, ctx: leased, snapshotter: c.snapshotter, image: c.image}
	content := bytes.Repeat([]byte(id+"\n"), 5000)
	var container containerd.Container
	steps := []struct {
		name string
		do   func() error
	}{
		{"create", func() (err error) {
			container, err = c.NewContainer(c.ctx, id, containerd.WithImage(c.image), containerd.WithSnapshotter(c.snapshotter),
				containerd.WithNewSnapshot(id, c.image), containerd.WithNewSpec(oci.WithImageConfig(c.image)))
			// The snapshot is made first; when making it went well and what followed did not, the next attempt finds it.
			if errdefs.IsAlreadyExists(err) {
				container, err = c.NewContainer(c.ctx, id, containerd.WithImage(c.image),
					containerd.WithSnapshotter(c.snapshotter), containerd.WithSnapshot(id),
					containerd.WithNewSpec(oci.WithImageConfig(c.image)))
			}
			return err
		}},
		{"write", func() error {
			return c.mounted(id, func(root string) error {
				if err := os.WriteFile(filepath.Join(root, "written"), content, 0644); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(root, "layer-2"), content, 0644)
			})
		}},
		{"read", func() error {
			return c.mounted(id, func(root string) error {
				for _, name := range []string{"written", "layer-2"} {
					found, err := os.ReadFile(filepath.Join(root, name))
					if err != nil {
						return err
					}
					if !bytes.Equal(found, content) {
						return fmt.Errorf("%s is not what was written", name)
					}
				}
				return nil
			})
		}},
		{"remove", func() error {
			err := container.Delete(c.ctx, containerd.WithSnapshotCleanup)
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}},
	}
	for _, step := range steps {
		if err := retry(step.do); err != nil {
			return fmt.Errorf("%s %s: %w", step.name, id, err)
		}
	}
	return nil
}

func (c *client) mounted(id string, do func(root string) error) error {
	mounts, err := c.SnapshotService(c.snapshotter).Mounts(c.ctx, id)
	if err != nil {
		return err
	}
	return mount.WithTempMount(c.ctx, mounts, do)
}

func retry(do func() error) error {
	start := time.Now()
	for {
		err := do()
		if err == nil || time.Since(start) > time.Minute {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
