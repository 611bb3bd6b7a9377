// Reads an OTLP metrics document in JSON from its input, as OpenTelemetry's collector does, and prints each point as
// the collector understands it: one JSON list a line of name, unit, type, attributes and value.
//
// It ends with 1 and the reason if the document is refused.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

func main() {
	if err := run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run() error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	request := pmetricotlp.NewExportRequest()
	if err := request.UnmarshalJSON(data); err != nil {
		return err
	}
	output := json.NewEncoder(os.Stdout)
	for _, resource := range request.Metrics().ResourceMetrics().All() {
		for _, scope := range resource.ScopeMetrics().All() {
			for _, metric := range scope.Metrics().All() {
				for _, point := range points(metric) {
					line := append([]any{metric.Name(), metric.Unit(), metric.Type().String()}, point...)
					if err := output.Encode(line); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// points returns the attributes and the value of each point.
func points(metric pmetric.Metric) [][]any {
	var result [][]any
	numbers := func(slice pmetric.NumberDataPointSlice) {
		for _, point := range slice.All() {
			var value any = point.DoubleValue()
			if point.ValueType() == pmetric.NumberDataPointValueTypeInt {
				value = fmt.Sprint(point.IntValue())
			}
			result = append(result, []any{point.Attributes().AsRaw(), value})
		}
	}
	switch metric.Type() {
	case pmetric.MetricTypeGauge:
		numbers(metric.Gauge().DataPoints())
	case pmetric.MetricTypeSum:
		if metric.Sum().IsMonotonic() && metric.Sum().AggregationTemporality() == pmetric.AggregationTemporalityCumulative {
			numbers(metric.Sum().DataPoints())
		}
	case pmetric.MetricTypeHistogram:
		for _, point := range metric.Histogram().DataPoints().All() {
			value := []any{point.Count(), point.Sum(), point.BucketCounts().AsRaw(), point.ExplicitBounds().AsRaw()}
			result = append(result, []any{point.Attributes().AsRaw(), value})
		}
	}
	return result
}
