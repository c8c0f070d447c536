#include "server/cli/output.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "backends/selector.h"
#include "server/cli/command.h"

namespace denoised::cli {
namespace {

constexpr int kBarWidth = 30;

[[noreturn]] void CannotWrite(const std::string& path, const std::string& why) {
  throw CommandError("cannot write " + path + ": " + why);
}

std::string Ending(const std::string& path) {
  const size_t dot = path.rfind('.');
  const size_t slash = path.rfind('/');
  if (dot == std::string::npos || (slash != std::string::npos && dot < slash)) return "";
  std::string ending = path.substr(dot + 1);
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return ending;
}

std::string ProgressText(const v1::Job& job) {
  if (job.state() == v1::QUEUED) {
    return "queued, " + std::to_string(job.queue_position()) + " before it";
  }
  std::string text = job.state() == v1::RUNNING ? job.stage() : v1::JobState_Name(job.state());
  text += " " + std::to_string(job.step()) + "/" + std::to_string(job.num_steps()) + " steps";
  if (job.has_eta() && job.state() == v1::RUNNING) {
    const double left = google::protobuf::util::TimeUtil::DurationToMilliseconds(job.eta()) / 1e3;
    text += ", " + std::to_string(static_cast<int64_t>(std::ceil(left))) + " s left";
  }
  return text;
}

std::string Bar(const v1::Job& job) {
  const int64_t steps = std::max<int64_t>(job.num_steps(), 1);
  const auto done =
      static_cast<size_t>(std::clamp<int64_t>(job.step() * kBarWidth / steps, 0, kBarWidth));
  return "[" + std::string(done, '#') + std::string(kBarWidth - done, '-') + "] ";
}

std::string Seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3f s", seconds);
  return text;
}

std::string Steps(const v1::ReceiptEntry& entry) {
  if (entry.role() != "self" && entry.role() != "cross") return "";
  return "steps " + std::to_string(entry.first_step()) + "-" + std::to_string(entry.last_step());
}

void PrintEntry(const v1::ReceiptEntry& entry) {
  std::printf("  %-12s %-16s %-12s %s\n", entry.role().c_str(), entry.ran().c_str(),
              Steps(entry).c_str(), WhoChose(entry.source(), entry.lease_id()).c_str());
  std::printf("  %-12s %llu calls%s\n", "", static_cast<unsigned long long>(entry.calls()),
              entry.has_seconds() ? (", " + Seconds(entry.seconds())).c_str() : "");
  if (entry.has_parameters()) {
    std::printf("  %-12s with %s\n", "", OneLine(Json(entry.parameters()), 300).c_str());
  }
  for (const v1::Refusal& refusal : entry.refusals()) {
    std::printf("  %-12s not %s (%s): %s\n", "", refusal.backend().c_str(),
                refusal.source().c_str(), OneLine(refusal.reason(), 300).c_str());
  }
}

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path), written_path_(path + ".part") {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) CannotWrite(path, "it is a folder");
    if (!S_ISREG(info.st_mode)) written_path_ = path;  // a device or pipe: nothing to rename
    if (access(path.c_str(), W_OK) != 0) CannotWrite(path, std::strerror(errno));
  }
  file_ = std::fopen(written_path_.c_str(), "wb");
  if (file_ == nullptr) CannotWrite(path, std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (written_path_ != path_) unlink(written_path_.c_str());
}

void OutputFile::Write(const std::string& bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) {
    CannotWrite(path_, std::strerror(errno));
  }
  size_ += bytes.size();
}

void OutputFile::Commit() {
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (!closed || (written_path_ != path_ && rename(written_path_.c_str(), path_.c_str()) != 0)) {
    const std::string why = std::strerror(errno);
    if (written_path_ != path_) unlink(written_path_.c_str());
    CannotWrite(path_, why);
  }
}

v1::ArtifactFormat FormatOfPath(const std::string& path) {
  const std::string ending = Ending(path);
  if (ending == "mp4") return v1::MP4;
  if (ending == "gif") return v1::GIF;
  if (ending == "png") return v1::PNG;
  if (ending == "npy") return v1::NPY;
  if (ending == "safetensors") return v1::SAFETENSORS;
  throw UsageError("the output's name must end in .mp4, .gif, .png, .npy or .safetensors, got '" +
                   path + "'");
}

std::string Json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) throw CommandError("cannot print the reply as JSON: " + status.ToString());
  return text;
}

void PrintJson(const google::protobuf::Message& message) {
  std::printf("%s\n", Json(message).c_str());
  std::fflush(stdout);
}

Progress::Progress(bool quiet) : quiet_(quiet), tty_(isatty(STDERR_FILENO) != 0) {}

void Progress::Show(const v1::Job& job) {
  if (quiet_) return;
  const std::string line = (tty_ && job.state() != v1::QUEUED ? Bar(job) : "") + ProgressText(job);
  if (line == last_line_) return;
  last_line_ = line;
  std::fprintf(stderr, tty_ ? "\r\033[K%s" : "%s\n", line.c_str());
  std::fflush(stderr);
  open_ = tty_;
}

void Progress::Finish() {
  if (open_) std::fputc('\n', stderr);
  open_ = false;
}

void PrintReceipt(const v1::Job& job) {
  const v1::Receipt& receipt = job.receipt();
  std::printf("receipt of job %s\n", job.id().c_str());
  for (const v1::ReceiptEntry& entry : receipt.entries()) PrintEntry(entry);
  for (const v1::StageTime& time : job.stage_times()) {
    std::printf("  %-12s %s\n", time.stage().c_str(), Seconds(time.seconds()).c_str());
  }
  for (const std::string& note : receipt.notes()) {
    std::printf("  note         %s\n", OneLine(note, 300).c_str());
  }
  // Whoever looks only at the picture and not at the receipt should know what it lacks.
  std::fflush(stdout);
  for (const std::string& note : receipt.notes()) {
    std::fprintf(stderr, "warning: %s\n", OneLine(note, 300).c_str());
  }
  const v1::GenerationParameters& parameters = job.parameters();
  std::printf(
      "  model        %s, %s on %s, %lldx%lld, %lld frames, seed %lld\n",
      parameters.model().c_str(), receipt.dtype().c_str(), receipt.device().c_str(),
      static_cast<long long>(parameters.width()), static_cast<long long>(parameters.height()),
      static_cast<long long>(parameters.num_frames()), static_cast<long long>(parameters.seed()));
  std::printf("  made by      denoised %s, %s\n", OneLine(receipt.version(), 60).c_str(),
              OneLine(receipt.kernels(), 300).c_str());
  std::printf("  fingerprint  %s\n", receipt.fingerprint().c_str());
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i] + std::string(widths[i] - row[i].size() + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::printf("%s\n", line.c_str());
  }
}

std::string WhoChose(const std::string& source, const std::string& lease_id) {
  const auto known = SelectionSourceFromName(source);
  if (!known) return "chosen by " + OneLine(source, 60);  // a newer server's
  switch (*known) {
    case SelectionSource::kForce:
      return "forced by lease " + lease_id;
    case SelectionSource::kRequest:
      return "asked for by the request";
    case SelectionSource::kEnvironment:
      return "asked for by FASTVIDEO_ATTENTION_BACKEND";
    case SelectionSource::kModelDefault:
      return "the model's default";
    case SelectionSource::kAutomatic:
      return "chosen automatically";
  }
  return "";
}

std::string OneLine(const std::string& text, size_t limit) {
  std::string line = text.substr(0, limit);
  if (text.size() > limit) {
    while (!line.empty() && (static_cast<unsigned char>(line.back()) & 0xc0) == 0x80) {
      line.pop_back();
    }
    if (!line.empty() && static_cast<unsigned char>(line.back()) >= 0xc0) line.pop_back();
    line += "...";
  }
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return line;
}

}  // namespace denoised::cli
