package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/containerd/continuity/sysx"
)

// read prints a tree: name, mode, owner, device, size, time, the first name of the same file, attributes, where a link points, the digest of the content.
// Directories have no size; their times change with what is made in them.
func read(root string) error {
	names := map[uint64]string{}
	return filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		name := strings.TrimPrefix(path, root) + "/"
		line := fmt.Sprintf("%q %o %d:%d", name, stat.Mode, stat.Uid, stat.Gid)
		if !info.IsDir() {
			line += fmt.Sprintf(" dev %x size %d time %d.%09d", stat.Rdev, stat.Size, stat.Mtim.Sec, stat.Mtim.Nsec)
			// Other names of a file may be gone in the layers above.
			if first, known := names[stat.Ino]; known {
				line += fmt.Sprintf(" is %q", first)
			} else {
				names[stat.Ino] = name
			}
		}
		attributes, err := attributes(path)
		if err != nil {
			return err
		}
		line += attributes
		switch info.Mode() & os.ModeType {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		case os.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		fmt.Println(line)
		return nil
	})
}

func attributes(path string) (string, error) {
	names, err := sysx.LListxattr(path)
	if err != nil {
		return "", err
	}
	sort.Strings(names)
	line := ""
	for _, name := range names {
		value, err := sysx.LGetxattr(path, name)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" %s=%x", name, value)
	}
	return line, nil
}
