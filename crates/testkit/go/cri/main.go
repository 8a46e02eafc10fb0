// Asks containerd what a kubelet asks it, over the container runtime interface: a word is a call, its answer goes to standard output.
//
//	cri ADDRESS version | ready | fs | stats CONTAINER | list-stats | image NAME | remove-image NAME
//	cri ADDRESS pod NAME LOGS [users]                       runs a sandbox on the host's network, in a user namespace of 65536 ids from 100000 on; prints its id
//	cri ADDRESS create SANDBOX NAME LOGS IMAGE rw|ro [users] -- COMMAND…      prints the container's id
//	cri ADDRESS start CONTAINER | exec CONTAINER COMMAND… | stop CONTAINER | remove CONTAINER | stop-pod SANDBOX | remove-pod SANDBOX
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/pkg/dialer"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

// node is the connection to a containerd.
type node struct {
	conn *grpc.ClientConn
	ctx  context.Context
}

func (n *node) runtime(call string, request, answer interface{}) error {
	return n.conn.Invoke(n.ctx, "/runtime.v1.RuntimeService/"+call, request, answer)
}

func (n *node) images(call string, request, answer interface{}) error {
	return n.conn.Invoke(n.ctx, "/runtime.v1.ImageService/"+call, request, answer)
}

func run(words []string) error {
	if len(words) < 2 {
		return errors.New("usage: cri ADDRESS CALL [WORD…]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := grpc.DialContext(ctx, dialer.DialAddress(words[0]), grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return err
	}
	defer conn.Close()
	n := &node{conn, ctx}
	call, words := words[1], words[2:]
	switch {
	case call == "pod" && len(words) >= 2:
		return n.pod(words)
	case call == "create" && len(words) >= 7:
		return n.create(words)
	case call == "exec" && len(words) >= 2:
		return n.exec(words[0], words[1:])
	case len(words) == 1:
		return n.of(call, words[0])
	case len(words) == 0:
		return n.ask(call)
	}
	return fmt.Errorf("no such call: %s %q", call, words)
}

// ask is a question about the node.
func (n *node) ask(call string) error {
	switch call {
	case "version":
		answer := &versionResponse{}
		if err := n.runtime("Version", &empty{}, answer); err != nil {
			return err
		}
		fmt.Println(answer.RuntimeName, answer.RuntimeVersion)
	case "ready":
		answer := &statusResponse{}
		if err := n.runtime("Status", &empty{}, answer); err != nil {
			return err
		}
		for _, condition := range answer.Status.Conditions {
			if condition.Type == "RuntimeReady" && condition.Status {
				return nil
			}
		}
		return fmt.Errorf("not ready: %v", answer.Status.Conditions)
	case "fs":
		answer := &imageFsResponse{}
		if err := n.images("ImageFsInfo", &empty{}, answer); err != nil {
			return err
		}
		for _, usage := range answer.Images {
			fmt.Println(usage.ID.Mountpoint, usage.bytes(), usage.inodes())
		}
	case "list-stats":
		answer := &listStatsResponse{}
		if err := n.runtime("ListContainerStats", &empty{}, answer); err != nil {
			return err
		}
		for _, stats := range answer.Stats {
			fmt.Println(stats.Attributes.ID, stats.Layer.bytes(), stats.Layer.inodes())
		}
	default:
		return fmt.Errorf("no such call: %s", call)
	}
	return nil
}

// of is a call that is about one image, container or sandbox.
func (n *node) of(call, name string) error {
	switch call {
	case "start":
		return n.runtime("StartContainer", &id{ID: name}, &empty{})
	case "stop":
		return n.runtime("StopContainer", &stopRequest{ID: name, Timeout: 1}, &empty{})
	case "remove":
		return n.runtime("RemoveContainer", &id{ID: name}, &empty{})
	case "stop-pod":
		return n.runtime("StopPodSandbox", &id{ID: name}, &empty{})
	case "remove-pod":
		return n.runtime("RemovePodSandbox", &id{ID: name}, &empty{})
	case "remove-image":
		return n.images("RemoveImage", &imageRequest{Image: &imageSpec{Image: name}}, &empty{})
	case "image":
		answer := &imageStatusResponse{}
		if err := n.images("ImageStatus", &imageRequest{Image: &imageSpec{Image: name}}, answer); err != nil {
			return err
		}
		if answer.Image == nil {
			return fmt.Errorf("there is no image %s", name)
		}
		fmt.Println(strings.Join(answer.Image.Tags, " "), answer.Image.Size)
	case "stats":
		answer := &containerStatsResponse{}
		if err := n.runtime("ContainerStats", &id{ID: name}, answer); err != nil {
			return err
		}
		fmt.Println(answer.Stats.Layer.ID.Mountpoint, answer.Stats.Layer.bytes(), answer.Stats.Layer.inodes())
	default:
		return fmt.Errorf("no such call: %s", call)
	}
	return nil
}

func (u *filesystemUsage) bytes() uint64 {
	if u == nil || u.Bytes == nil {
		return 0
	}
	return u.Bytes.Value
}

func (u *filesystemUsage) inodes() uint64 {
	if u == nil || u.Inodes == nil {
		return 0
	}
	return u.Inodes.Value
}

func namespaces(words []string) *namespaceOption {
	option := &namespaceOption{Network: 2, PID: 1}
	// A user namespace wants a network namespace that is its own.
	for _, word := range words {
		if word == "users" {
			ids := []*idMapping{{Host: 100000, Container: 0, Length: 65536}}
			option.Network = 0
			option.Users = &userNamespace{Mode: 0, UIDs: ids, GIDs: ids}
		}
	}
	return option
}

// sandbox is the configuration of a pod; a kubelet says it once more with each container.
func sandbox(name, logs string, more []string) *sandboxConfig {
	return &sandboxConfig{
		Metadata: &sandboxMetadata{Name: name, UID: name, Namespace: "default"},
		Logs:     logs,
		Linux:    &linuxSandbox{Security: &sandboxSecurity{Namespaces: namespaces(more)}},
	}
}

func (n *node) pod(words []string) error {
	answer := &id{}
	if err := n.runtime("RunPodSandbox", &runSandboxRequest{Config: sandbox(words[0], words[1], words[2:])}, answer); err != nil {
		return err
	}
	fmt.Println(answer.ID)
	return nil
}

func (n *node) create(words []string) error {
	pod, name, logs, image, access, words := words[0], words[1], words[2], words[3], words[4], words[5:]
	var more []string
	for len(words) > 0 && words[0] != "--" {
		more, words = append(more, words[0]), words[1:]
	}
	if len(words) < 2 {
		return errors.New("no command")
	}
	request := &createRequest{
		Sandbox: pod,
		Config: &containerConfig{
			Metadata: &containerMetadata{Name: name},
			Image:    &imageSpec{Image: image},
			Command:  words[1:],
			Log:      name + ".log",
			Linux:    &linuxContainer{Security: &containerSecurity{Namespaces: namespaces(more), ReadOnly: access == "ro"}},
		},
		SandboxConfig: sandbox(name, logs, more),
	}
	answer := &id{}
	if err := n.runtime("CreateContainer", request, answer); err != nil {
		return err
	}
	fmt.Println(answer.ID)
	return nil
}

// exec runs a command in a container, and ends as it did.
func (n *node) exec(container string, command []string) error {
	answer := &execResponse{}
	if err := n.runtime("ExecSync", &execRequest{ID: container, Command: command, Timeout: 60}, answer); err != nil {
		return err
	}
	os.Stdout.Write(answer.Out)
	os.Stderr.Write(answer.Err)
	if answer.Code != 0 {
		return fmt.Errorf("%q ended with %d", command, answer.Code)
	}
	return nil
}
