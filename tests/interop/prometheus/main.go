// Checks files of deployments/prometheus with Prometheus' own parsers, as promtool does. promtool itself takes seven
// minutes of processor time to build; this takes one.
//
//	prometheus config FILE    as `promtool check config --syntax-only`
//	prometheus rules FILE     as `promtool check rules`, and prints the names of the metrics that the rules read, as JSON
//	prometheus query TEXT     parses a query, such as a dashboard's, and prints the names of the metrics that it reads
//
// It ends with 1 and the reasons if anything is wrong.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

var (
	queries = parser.NewParser(parser.Options{})
	silent  = slog.New(slog.DiscardHandler)
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) != 2 {
		return errors.New("usage: prometheus config FILE | rules FILE | query TEXT")
	}
	switch arguments[0] {
	case "config":
		_, err := config.LoadFile(arguments[1], false, silent)
		return err
	case "rules":
		groups, problems := rulefmt.ParseFile(arguments[1], false, model.UTF8Validation, queries, silent)
		if len(problems) > 0 {
			return errors.Join(problems...)
		}
		var texts []string
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				texts = append(texts, rule.Expr)
			}
		}
		return show(texts)
	case "query":
		return show(arguments[1:])
	}
	return fmt.Errorf("no such check: %s", arguments[0])
}

// show prints the names of the metrics that queries read.
func show(texts []string) error {
	names := []string{}
	for _, text := range texts {
		expression, err := queries.ParseExpr(text)
		if err != nil {
			return err
		}
		parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
			if selector, ok := node.(*parser.VectorSelector); ok {
				for _, matcher := range selector.LabelMatchers {
					if matcher.Name == labels.MetricName {
						names = append(names, matcher.Value)
					}
				}
			}
			return nil
		})
	}
	slices.Sort(names)
	return json.NewEncoder(os.Stdout).Encode(slices.Compact(names))
}
