// Checks files of deployments/ with the libraries of the tools that read them.
//
//	deployments compose FILE ENV   loads a compose file as `docker compose config` does, and prints it as JSON
//	deployments dockerfile FILE    checks a Dockerfile as `docker build --check` does, without a registry
//
// It ends with 1 and the reasons if anything is wrong.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 3 && arguments[0] == "compose":
		return compose(arguments[1], arguments[2])
	case len(arguments) == 2 && arguments[0] == "dockerfile":
		return dockerfile(arguments[1])
	}
	return errors.New("usage: deployments compose FILE ENV | deployments dockerfile FILE")
}

func compose(path, env string) error {
	options, err := cli.NewProjectOptions(
		[]string{path}, cli.WithEnvFiles(env), cli.WithDotEnv, cli.WithProfiles([]string{"*"}),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	shown, err := project.MarshalJSON()
	if err != nil {
		return err
	}
	fmt.Println(string(shown))
	return nil
}

// noRegistry answers that an image has an empty configuration: only the instructions are checked.
type noRegistry struct{}

func (noRegistry) ResolveImageConfig(
	_ context.Context, name string, opt sourceresolver.Opt,
) (string, digest.Digest, []byte, error) {
	platform := ocispecs.Platform{Architecture: "amd64", OS: "linux"}
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		platform = *opt.ImageOpt.Platform
	}
	config, err := json.Marshal(ocispecs.Image{Platform: platform})
	return name, "", config, err
}

func dockerfile(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	name, source := filepath.Base(path), llb.NewSourceMap(nil, filepath.Base(path), "Dockerfile", text)
	source.Definition = &llb.Definition{}
	found, err := dockerfile2llb.DockerfileLint(context.Background(), text, dockerfile2llb.ConvertOpt{
		SourceMap:    source,
		MetaResolver: noRegistry{},
	})
	if err != nil {
		return err
	}
	var problems []error
	if found.Error != nil {
		problems = append(problems, errors.New(found.Error.Message))
	}
	for _, warning := range found.Warnings {
		line := int32(0)
		if warning.Location != nil && len(warning.Location.Ranges) > 0 {
			line = warning.Location.Ranges[0].Start.Line
		}
		problems = append(problems, fmt.Errorf("%s:%d: %s: %s", name, line, warning.RuleName, warning.Detail))
	}
	return errors.Join(problems...)
}
