// What GitOps tools make of a StreamingJob: the health script of Argo CD, run by the Lua that Argo CD runs, and kstatus, by which
// Flux waits, over objects that were recorded from a real run (record.sh). The head of each says what is expected.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// States that have to be among the recorded ones: without one of them the check shows less than it says.
var states = []string{
	"pending", "reconciling", "running", "suspended", "completed", "rolled-back", "stalled", "edited", "deleted",
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gitops HEALTH.lua FOLDER")
		os.Exit(2)
	}
	script, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	wrong := 0
	for _, state := range states {
		path := filepath.Join(os.Args[2], state+".yaml")
		told, err := check(string(script), path)
		if err != nil {
			wrong++
			told = "WRONG " + err.Error()
		}
		fmt.Printf("%-12s %s\n", state, told)
	}
	if wrong > 0 {
		fmt.Printf("FAIL gitops: %d of %d recorded objects are taken for something else\n", wrong, len(states))
		os.Exit(1)
	}
	fmt.Printf("PASS gitops: %d recorded objects are taken for what they are\n", len(states))
}

func check(script, path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var object map[string]any
	if err := yaml.Unmarshal(text, &object); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	health, err := health(script, object)
	if err != nil {
		return "", fmt.Errorf("the health script: %w", err)
	}
	// As a watch gives it: whole numbers are integers.
	content, err := json.Marshal(object)
	if err != nil {
		return "", err
	}
	of := &unstructured.Unstructured{}
	if err := of.UnmarshalJSON(content); err != nil {
		return "", err
	}
	result, err := status.Compute(of)
	if err != nil {
		return "", fmt.Errorf("kstatus: %w", err)
	}
	for what, is := range map[string]string{"argocd": health, "kstatus": string(result.Status)} {
		if wanted := head(text, what); is != wanted {
			return "", fmt.Errorf("%s: %s, expected %q", what, is, wanted)
		}
	}
	return fmt.Sprintf("argocd %-12s kstatus %s", health, result.Status), nil
}

// A line of the head, `# name: value`.
func head(text []byte, name string) string {
	for _, line := range bytes.Split(text, []byte("\n")) {
		value, found := strings.CutPrefix(string(line), "# "+name+": ")
		if found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Runs the script as Argo CD does: `obj` is the object, of the libraries there are base, package and table.
func health(script string, object map[string]any) (string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		call := lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return "", err
		}
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return "", err
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", fmt.Errorf("it returns %s", state.Get(-1).Type())
	}
	told, ok := answer.RawGetString("message").(lua.LString)
	if !ok || told == "" {
		return "", fmt.Errorf("it says nothing")
	}
	switch health := answer.RawGetString("status").String(); health {
	case "Healthy", "Progressing", "Degraded", "Suspended", "Missing":
		return health, nil
	default:
		return "", fmt.Errorf("there is no health %q", health)
	}
}

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case map[string]any:
		table := state.NewTable()
		for name, member := range of {
			table.RawSetString(name, value(state, member))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range of {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(of)
	case bool:
		return lua.LBool(of)
	case float64:
		return lua.LNumber(of)
	default:
		return lua.LNil
	}
}
