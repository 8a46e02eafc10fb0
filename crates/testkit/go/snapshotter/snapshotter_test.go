// containerd's own conformance suite for snapshotters, run over a socket, as a proxy plugin is reached.
//
// Each case starts a server of its own on a folder of its own: the command in VELLUM_TEST_SERVER, in which ROOT and SOCKET stand for
// its folder and its socket. The name given to the suite is nobody's, so that no exception is made.
package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"github.com/containerd/continuity/fs/fstest"
	"google.golang.org/grpc"
)

const name = "vellum-test"

// serve starts a server on root, and gives a client of it and what ends both.
func serve(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	// A socket's path has 107 bytes at most, and the suite's folders are long.
	dir, err := os.MkdirTemp("", "vs-")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(dir, "s")
	words := strings.Fields(os.Getenv("VELLUM_TEST_SERVER"))
	if len(words) == 0 {
		return nil, nil, errors.New("VELLUM_TEST_SERVER is not set: run this by `cargo xtask test`")
	}
	for i, word := range words {
		words[i] = strings.NewReplacer("ROOT", root, "SOCKET", socket).Replace(word)
	}
	log := new(output)
	server := exec.Command(words[0], words[1:]...)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	stop := func() error {
		defer os.RemoveAll(dir)
		defer letGo(root)
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("the server is gone: %v\n%s", err, log)
		}
		select {
		case <-ended:
			return nil
		case <-time.After(20 * time.Second):
			_ = server.Process.Kill()
			return fmt.Errorf("the server does not end when it is asked to:\n%s", log)
		}
	}
	if err := answers(socket, ended); err != nil {
		_ = server.Process.Kill()
		os.RemoveAll(dir)
		return nil, nil, fmt.Errorf("%w\n%s", err, log)
	}
	conn, err := grpc.Dial(dialer.DialAddress(socket), grpc.WithInsecure(),
		grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		_ = stop()
		return nil, nil, err
	}
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
	return client, func() error { conn.Close(); return stop() }, nil
}

// letGo takes off what a server leaves mounted for those who still use it, in its store or of a file in it, and removes the store.
func letGo(root string) {
	table, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(table), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		words := strings.Fields(lines[i])
		if len(words) > 1 && (strings.HasPrefix(words[0], root+"/store/") || strings.HasPrefix(words[1], root+"/store/")) {
			_ = syscall.Unmount(words[1], syscall.MNT_DETACH)
		}
	}
	// What was removed is deleted by a process of its own, which may still be at it.
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if os.RemoveAll(root+"/store") == nil {
			return
		}
	}
}

// answers waits until the server listens.
func answers(socket string, ended chan error) error {
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the server ended: %v", err)
		default:
		}
	}
	return errors.New("the server does not listen")
}

// output is what a server prints; it may be read while the server runs.
type output struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (o *output) Write(text []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.Write(text)
}

func (o *output) String() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.String()
}

func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, name, serve)
}

// TestRename is the suite's case of this name, which containerd 1.6 leaves out for every snapshotter since overlayfs fails it on some
// kernels: directories and files of lower layers are renamed.
func TestRename(t *testing.T) {
	layers(t,
		fstest.Apply(
			fstest.CreateDir("/dir1", 0700),
			fstest.CreateFile("/dir1/inside", []byte("moves along"), 0600),
			fstest.CreateDir("/somefiles", 0700),
			fstest.CreateFile("/somefiles/f1", []byte("was here first!"), 0644),
			fstest.CreateFile("/somefiles/f2", []byte("nothing interesting"), 0644),
		),
		fstest.Apply(
			fstest.Rename("/dir1", "/dir2"),
			fstest.CreateFile("/somefiles/f1-overwrite", []byte("new content 1"), 0644),
			fstest.Rename("/somefiles/f1-overwrite", "/somefiles/f1"),
			fstest.Rename("/somefiles/f2", "/somefiles/f3"),
		),
		fstest.Apply(
			fstest.Rename("/dir2", "/somefiles/dir3"),
			fstest.CreateDir("/dir1", 0755),
			fstest.Rename("/somefiles", "/dir2"),
		),
	)
}

// layers makes one snapshot on the other and compares each with a folder to which the same was done.
func layers(t *testing.T, changes ...fstest.Applier) {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "testsuite")
	dir := t.TempDir()
	root, flat := filepath.Join(dir, "root"), filepath.Join(dir, "flat")
	for _, path := range []string{root, flat} {
		if err := os.Mkdir(path, 0755); err != nil {
			t.Fatal(err)
		}
	}
	sn, stop, err := serve(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	gc := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"})
	parent := ""
	for i, change := range changes {
		if err := change.Apply(flat); err != nil {
			t.Fatal(err)
		}
		key, committed := fmt.Sprintf("active-%d", i), fmt.Sprintf("committed-%d", i)
		mounts, err := sn.Prepare(ctx, key, parent, gc)
		if err != nil {
			t.Fatalf("prepare layer %d: %v", i, err)
		}
		if err := mount.WithTempMount(ctx, mounts, change.Apply); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if err := sn.Commit(ctx, committed, key, gc); err != nil {
			t.Fatalf("commit layer %d: %v", i, err)
		}
		parent = committed
		view, err := sn.View(ctx, key+"-view", parent)
		if err != nil {
			t.Fatalf("view layer %d: %v", i, err)
		}
		same := func(root string) error { return fstest.CheckDirectoryEqual(root, flat) }
		if err := mount.WithTempMount(ctx, view, same); err != nil {
			t.Fatalf("layer %d is not what it was: %v", i, err)
		}
		if err := sn.Remove(ctx, key+"-view"); err != nil {
			t.Fatal(err)
		}
	}
	for i := len(changes) - 1; i >= 0; i-- {
		if err := sn.Remove(ctx, fmt.Sprintf("committed-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
}
