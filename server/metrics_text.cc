#include "server/metrics_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>

namespace denoised {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricType;

void AppendCount(uint64_t count, std::string* out) {
  std::array<char, 24> digits;
  const auto end = std::to_chars(digits.begin(), digits.end(), count).ptr;
  out->append(digits.begin(), end);
}

void AppendValue(double value, std::string* out) {
  if (std::isnan(value)) {
    *out += "Nan";
  } else if (std::isinf(value)) {
    *out += value < 0 ? "-Inf" : "+Inf";
  } else {
    constexpr int kDigits = std::numeric_limits<double>::max_digits10 - 1;
    std::array<char, 32> digits;
    const auto end =
        std::to_chars(digits.begin(), digits.end(), value, std::chars_format::general, kDigits).ptr;
    out->append(digits.begin(), end);
  }
}

void AppendEscaped(std::string_view value, std::string* out) {
  while (true) {
    const size_t plain = std::min(value.find_first_of("\n\\\""), value.size());
    out->append(value.substr(0, plain));
    if (plain == value.size()) return;
    out->append({'\\', value[plain] == '\n' ? 'n' : value[plain]});
    value.remove_prefix(plain + 1);
  }
}

std::string HeadOf(const std::string& name, const std::string& help, MetricType type) {
  const std::string help_line = help.empty() ? "" : "# HELP " + name + " " + help + "\n";
  const char* const kind = type == MetricType::Counter ? "counter"
                           : type == MetricType::Gauge ? "gauge"
                                                       : "histogram";
  return help_line + "# TYPE " + name + " " + kind + "\n";
}

}  // namespace

FamilyText::FamilyText(const std::string& name, const std::string& help, MetricType type,
                       const std::vector<std::string>& labels, const std::vector<double>& bounds)
    : name_(name), head_(HeadOf(name, help, type)), type_(type) {
  for (size_t i = 0; i < labels.size(); ++i) labels_.push_back({labels[i], i});
  std::sort(labels_.begin(), labels_.end(),
            [](const Label& a, const Label& b) { return a.name < b.name; });
  std::vector<double> all = bounds;
  all.push_back(std::numeric_limits<double>::infinity());
  for (const double bound : all) {
    les_.emplace_back("le=\"");
    AppendValue(bound, &les_.back());
    les_.back() += "\"} ";
  }
}

void FamilyText::Append(const std::vector<std::string_view>& values, const ClientMetric& metric,
                        std::string* out) const {
  const std::string labels = LabelsOf(values);
  if (type_ == MetricType::Histogram) return AppendHistogram(labels, metric.histogram, out);
  AppendStart("", labels, out);
  AppendValue(type_ == MetricType::Counter ? metric.counter.value : metric.gauge.value, out);
  *out += '\n';
}

// a="x",b="y"
std::string FamilyText::LabelsOf(const std::vector<std::string_view>& values) const {
  std::string text;
  for (const Label& label : labels_) {
    if (!text.empty()) text += ',';
    text.append(label.name).append("=\"");
    AppendEscaped(values[label.index], &text);
    text += '"';
  }
  return text;
}

void FamilyText::AppendHistogram(const std::string& labels,
                                 const ClientMetric::Histogram& histogram, std::string* out) const {
  AppendStart("_count", labels, out);
  AppendCount(histogram.sample_count, out);
  *out += '\n';
  AppendStart("_sum", labels, out);
  AppendValue(histogram.sample_sum, out);
  *out += '\n';
  std::string bucket;
  bucket.reserve(name_.size() + labels.size() + 16);
  bucket.append(name_).append("_bucket{").append(labels).append(labels.empty() ? "" : ",");
  for (size_t i = 0; i < les_.size(); ++i) {
    out->append(bucket).append(les_[i]);
    AppendCount(histogram.bucket[i].cumulative_count, out);
    *out += '\n';
  }
}

// A line up to its value.
void FamilyText::AppendStart(std::string_view suffix, const std::string& labels,
                             std::string* out) const {
  out->append(name_).append(suffix);
  if (!labels.empty()) out->append("{").append(labels).append("}");
  *out += ' ';
}

}  // namespace denoised
