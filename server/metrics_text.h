// The text of one metric family in Prometheus' format 0.0.4, byte for byte as prometheus-cpp's
// TextSerializer writes it, but a series at a time: no copy of all of them is made. Sees
// Prometheus.
#ifndef DENOISED_SERVER_METRICS_TEXT_H_
#define DENOISED_SERVER_METRICS_TEXT_H_

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

#include <string>
#include <string_view>
#include <vector>

namespace denoised {

class FamilyText {
 public:
  // `bounds`: of a histogram's buckets, without infinity.
  FamilyText(const std::string& name, const std::string& help, prometheus::MetricType type,
             const std::vector<std::string>& labels, const std::vector<double>& bounds = {});

  // What stands above the series.
  const std::string& head() const { return head_; }
  size_t label_count() const { return labels_.size(); }

  // `values` are as many as the labels, in their order; `metric` has no labels of its own.
  void Append(const std::vector<std::string_view>& values, const prometheus::ClientMetric& metric,
              std::string* out) const;

 private:
  struct Label {
    std::string name;
    size_t index;  // of its value
  };

  std::string LabelsOf(const std::vector<std::string_view>& values) const;
  void AppendStart(std::string_view suffix, const std::string& labels, std::string* out) const;
  void AppendHistogram(const std::string& labels,
                       const prometheus::ClientMetric::Histogram& histogram,
                       std::string* out) const;

  const std::string name_, head_;
  const prometheus::MetricType type_;
  std::vector<Label> labels_;     // by name
  std::vector<std::string> les_;  // of each bucket: le="0.5"
};

}  // namespace denoised

#endif  // DENOISED_SERVER_METRICS_TEXT_H_
