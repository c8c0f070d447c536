#include "server/cli/output.h"

#include <google/protobuf/util/json_util.h>
#include <stdio_ext.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "backends/selector.h"
#include "runtime/loaders/visible_text.h"
#include "runtime/scope.h"
#include "runtime/tokenizer/utf8.h"
#include "server/cli/command.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

constexpr size_t kReasonColumns = 300;

void Write(std::string_view text, std::FILE* stream) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stream) == text.size();
  if (written || stream != stdout) return;
  if (errno == EPIPE) throw ReaderLeft();
  throw CommandError("cannot write to standard output: " + std::string(std::strerror(errno)));
}

// Protobuf escapes most of what steers a terminal; characters outside of ASCII stand in strings
// only, so the rest can be escaped here.
std::string EscapedJson(const std::string& json) {
  std::string out;
  for (std::string_view rest = json; !rest.empty();) {
    const size_t length = std::max<size_t>(1, Utf8Length(rest));
    const char32_t code_point = length > 1 ? FirstCodePoint(rest) : 0;
    if (length > 1 && code_point < 0x10000 && MustEscape(code_point)) {
      std::array<char, 16> text;
      std::snprintf(text.data(), text.size(), "\\u%04x", static_cast<unsigned>(code_point));
      out += text.data();
    } else {
      out += rest.substr(0, length);
    }
    rest.remove_prefix(length);
  }
  return out;
}

// An emptied `bytes data` field; within a string its quotes would be escaped.
std::string WithoutEmptyData(std::string json) {
  constexpr std::string_view kField = ",\"data\":\"\"";
  const size_t at = json.find(kField);
  return at == std::string::npos ? json : json.erase(at, kField.size());
}

std::string Padded(const std::string& text, size_t columns) {
  const std::string cell = VisibleText(text);
  const size_t width = DisplayWidth(cell);
  return cell + std::string(width < columns ? columns - width : 0, ' ');
}

// A line of a receipt: a word of its margin, then text.
void PrintRow(const std::string& margin, const std::string& text, std::FILE* stream) {
  PrintLine("  " + Padded(margin, 12) + " " + text, stream);
}

std::string Seconds(double seconds) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.3f s", seconds);
  return text.data();
}

std::optional<int64_t> RuleOf(const v1::ReceiptEntry& entry) {
  return entry.has_rule() ? std::optional(entry.rule()) : std::nullopt;
}

std::string Steps(const v1::ReceiptEntry& entry) {
  if (entry.role() != "self" && entry.role() != "cross") return "";
  std::string text =
      "steps " + std::to_string(entry.first_step()) + "-" + std::to_string(entry.last_step());
  if (!entry.has_layers()) return text;
  return text + ", layers " + ToText(Interval{entry.layers().first(), entry.layers().last()});
}

void PrintEntry(const v1::ReceiptEntry& entry, std::FILE* stream) {
  PrintRow(entry.role(),
           Padded(entry.ran(), 16) + " " + Padded(Steps(entry), 12) + " " +
               WhoChose(entry.source(), entry.lease_id(), RuleOf(entry)),
           stream);
  PrintRow("",
           std::to_string(entry.calls()) + " calls" +
               (entry.has_seconds() ? ", " + Seconds(entry.seconds()) : ""),
           stream);
  if (entry.has_parameters()) {
    PrintRow("", "with " + OneLine(Json(entry.parameters()), kReasonColumns), stream);
  }
  for (const v1::Refusal& refusal : entry.refusals()) {
    PrintRow("",
             "not " + refusal.backend() + " (" + refusal.source() +
                 "): " + OneLine(refusal.reason(), kReasonColumns),
             stream);
  }
}

std::string WhatWasMade(const v1::Job& job) {
  const v1::GenerationParameters& made = job.parameters();
  return made.model() + ", " + job.receipt().dtype() + " on " + job.receipt().device() + ", " +
         std::to_string(made.width()) + "x" + std::to_string(made.height()) + ", " +
         std::to_string(made.num_frames()) + " frames, seed " + std::to_string(made.seed());
}

}  // namespace

void PrintLine(std::string_view line, std::FILE* stream) {
  Write(VisibleText(line) + "\n", stream);
}

void PrintText(const std::string& text) { Write(text, stdout); }

void FlushOutput() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  if (errno == EPIPE) throw ReaderLeft();
  throw CommandError("cannot write to standard output: " + std::string(std::strerror(errno)));
}

void PrintAbout(const std::function<void()>& print) {
  try {
    print();
    FlushOutput();
  } catch (const ReaderLeft&) {
    __fpurge(stdout);
    std::clearerr(stdout);
  }
}

std::string Json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) throw CommandError("cannot print the reply as JSON: " + status.ToString());
  return EscapedJson(text);
}

void PrintJson(const google::protobuf::Message& message) {
  Write(WithoutEmptyData(Json(message)) + "\n", stdout);
  FlushOutput();
}

void PrintReceipt(const v1::Job& job, std::FILE* stream) {
  const v1::Receipt& receipt = job.receipt();
  PrintLine("receipt of job " + job.id(), stream);
  for (const v1::ReceiptEntry& entry : receipt.entries()) PrintEntry(entry, stream);
  for (const v1::StageTime& time : job.stage_times()) {
    PrintRow(time.stage(), Seconds(time.seconds()), stream);
  }
  for (const std::string& note : receipt.notes()) {
    PrintRow("note", OneLine(note, kReasonColumns), stream);
  }
  PrintRow("model", WhatWasMade(job), stream);
  PrintRow("made by",
           "denoised " + OneLine(receipt.version(), 60) + ", " + OneLine(receipt.linear(), 20) +
               " linear layers, " + OneLine(receipt.kernels(), kReasonColumns),
           stream);
  PrintRow("fingerprint", receipt.fingerprint(), stream);
  // Whoever looks only at the picture and not at the receipt should know what it lacks.
  FlushOutput();
  for (const std::string& note : receipt.notes()) {
    PrintLine("warning: " + OneLine(note, kReasonColumns), stderr);
  }
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  for (const std::string& line : TableLines(rows)) PrintLine(line);
}

std::string WhoChose(const std::string& source, const std::string& lease_id,
                     std::optional<int64_t> rule) {
  const auto known = SelectionSourceFromName(source);
  if (!known) return "chosen by " + OneLine(source, 60);  // a newer server's
  switch (*known) {
    case SelectionSource::kForce:
      return "forced by lease " + lease_id;
    case SelectionSource::kRequest:
      return rule ? "asked for by rule " + std::to_string(*rule) + " of the request"
                  : "asked for by the request";
    case SelectionSource::kEnvironment:
      return "asked for by FASTVIDEO_ATTENTION_BACKEND";
    case SelectionSource::kModelDefault:
      return rule ? "rule " + std::to_string(*rule) + " of the model" : "the model's default";
    case SelectionSource::kAutomatic:
      return "chosen automatically";
  }
  return "";
}

}  // namespace denoised::cli
