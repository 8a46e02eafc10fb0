// Package v2 stands in for docker's package of managed plugins, which Debian leaves out and the graph drivers' registry imports: it looks whether a
// plugin is a managed one. Ours never is.
package v2

import "github.com/docker/docker/pkg/plugins"

// Plugin is a managed plugin.
type Plugin struct {
	PluginObj struct {
		Config struct{ PropagatedMount string }
	}
}

// Name is what the interface of plugins wants.
func (p *Plugin) Name() string { return "" }

// ScopedPath is what the interface of plugins wants.
func (p *Plugin) ScopedPath(path string) string { return path }

// IsV1 is what the interface of plugins wants.
func (p *Plugin) IsV1() bool { return false }

// Client is what the interface of plugins wants.
func (p *Plugin) Client() *plugins.Client { return nil }
