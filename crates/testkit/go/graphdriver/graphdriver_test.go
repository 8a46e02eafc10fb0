// Docker's own suite for graph drivers, run on a plugin: through docker's own client of the protocol, to the socket
// that VELLUM_SOCKET names. Each test wants a server, and a store, of its own.
package graphdriver

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/daemon/graphdriver/graphtest"
	"github.com/docker/docker/pkg/idtools"
	"github.com/docker/docker/pkg/plugingetter"
	"github.com/docker/docker/pkg/plugins"
	"github.com/docker/docker/pkg/reexec"
)

const name = "vellum"

// plugin is what docker's daemon has found in its folder of plugins.
type plugin struct{ client *plugins.Client }

func (p plugin) Name() string                  { return name }
func (p plugin) ScopedPath(path string) string { return path }
func (p plugin) IsV1() bool                    { return true }
func (p plugin) Client() *plugins.Client       { return p.client }

// getter is docker's folder of plugins, with one in it.
type getter struct{ plugin plugin }

func (g getter) Get(string, string, int) (plugingetter.CompatPlugin, error) { return g.plugin, nil }
func (g getter) GetAllByCap(string) ([]plugingetter.CompatPlugin, error) {
	return []plugingetter.CompatPlugin{g.plugin}, nil
}
func (g getter) GetAllManagedPluginsByCap(string) []plugingetter.CompatPlugin { return nil }
func (g getter) Handle(string, func(string, *plugins.Client))                 {}

func open(root string, options []string, uids, gids []idtools.IDMap) (graphdriver.Driver, error) {
	socket := os.Getenv("VELLUM_SOCKET")
	if socket == "" {
		return nil, fmt.Errorf("VELLUM_SOCKET is not set")
	}
	client, err := plugins.NewClientWithTimeout("unix://"+socket, nil, time.Minute)
	if err != nil {
		return nil, err
	}
	var manifest struct{ Implements []string }
	if err := client.Call("Plugin.Activate", nil, &manifest); err != nil {
		return nil, err
	}
	if len(manifest.Implements) != 1 || manifest.Implements[0] != "GraphDriver" {
		return nil, fmt.Errorf("the plugin implements %v", manifest.Implements)
	}
	return graphdriver.GetDriver(name+"-plugin", getter{plugin{client}}, graphdriver.Options{
		Root: root, DriverOptions: options, UIDMaps: uids, GIDMaps: gids, ExperimentalEnabled: true,
	})
}

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	if err := graphdriver.Register(name, open); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestCreateEmpty(t *testing.T)      { graphtest.DriverTestCreateEmpty(t, name) }
func TestCreateBase(t *testing.T)       { graphtest.DriverTestCreateBase(t, name) }
func TestCreateSnap(t *testing.T)       { graphtest.DriverTestCreateSnap(t, name) }
func Test128LayerRead(t *testing.T)     { graphtest.DriverTestDeepLayerRead(t, 128, name) }
func TestDiffApply10Files(t *testing.T) { graphtest.DriverTestDiffApply(t, 10, name) }
func TestDiffApply1000(t *testing.T)    { graphtest.DriverTestDiffApply(t, 1000, name) }
func TestChanges(t *testing.T)          { graphtest.DriverTestChanges(t, name) }

// TestSetQuota is for drivers that can limit a layer's size; VELLUM_QUOTA says so.
func TestSetQuota(t *testing.T) {
	if os.Getenv("VELLUM_QUOTA") == "" {
		t.Skip("this driver has no quota")
	}
	graphtest.DriverTestSetQuota(t, name, true)
}
