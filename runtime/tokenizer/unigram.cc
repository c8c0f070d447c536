#include "runtime/tokenizer/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/error.h"
#include "runtime/tokenizer/utf8.h"

namespace denoised {
namespace {

constexpr double kUnknownPenalty = 10.0;  // below the worst piece, as in SentencePiece
constexpr size_t kMaxPieceBytes = 1024;   // bounds the work at each byte of text

void CheckVocab(const Unigram::Vocab& vocab, int64_t unk_id, const std::string& what) {
  const auto bad = [&](const std::string& why) {
    return Error(StatusCode::kInvalidArgument, what + ": vocabulary: " + why, what);
  };
  if (vocab.size() > Unigram::kMaxPieces) {
    throw bad("more than " + std::to_string(Unigram::kMaxPieces) + " pieces");
  }
  if (unk_id < 0 || unk_id >= static_cast<int64_t>(vocab.size())) {
    throw bad("unk_id " + std::to_string(unk_id) + " is not one of the " +
              std::to_string(vocab.size()) + " pieces");
  }
  for (size_t id = 0; id < vocab.size(); ++id) {
    const auto& [piece, score] = vocab[id];
    const bool good = std::isfinite(score) && piece.size() <= kMaxPieceBytes &&
                      FindInvalidUtf8(piece) == piece.size();
    if (!good) {
      throw bad("piece " + std::to_string(id) +
                " is not UTF-8, is too long or has a score that is not finite");
    }
  }
}

std::string BytePiece(int byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  return std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">";
}

}  // namespace

Unigram::Unigram(Vocab vocab, int64_t unk_id, bool byte_fallback, const std::string& what)
    : unk_id_(unk_id) {
  CheckVocab(vocab, unk_id, what);
  double lowest = std::numeric_limits<double>::infinity();
  std::vector<PrefixIndex::Entry> entries;
  entries.reserve(vocab.size());
  scores_.reserve(vocab.size());
  for (auto& [piece, score] : vocab) {
    lowest = std::min(lowest, score);
    entries.push_back({std::move(piece), static_cast<int64_t>(scores_.size())});
    scores_.push_back(score);
  }
  unk_score_ = lowest - kUnknownPenalty;
  index_ = PrefixIndex(std::move(entries));
  if (!byte_fallback) return;
  for (int byte = 0; byte < 256; ++byte) byte_ids_.push_back(Find(BytePiece(byte)).value_or(-1));
}

std::vector<Unigram::Node> Unigram::BestPath(std::string_view word) const {
  std::vector<Node> best(word.size() + 1);
  size_t length = 0;
  for (size_t at = 0; at < word.size(); at += length) {
    length = Utf8Length(word.substr(at));
    const double here = best[at].score;
    const auto offer = [&](size_t bytes, int64_t id, double score) {
      Node& node = best[at + bytes];
      // Of equals the first one found stays.
      if (node.begin >= 0 && here + score <= node.score) return;
      node = {here + score, id, static_cast<int64_t>(at)};
    };
    bool has_single = false;
    index_.ForEachPrefix(word.substr(at), [&](size_t bytes, int64_t id) {
      offer(bytes, id, scores_[static_cast<size_t>(id)]);
      has_single |= bytes == length;
    });
    if (!has_single) offer(length, unk_id_, unk_score_);
  }
  return best;
}

void Unigram::AppendUnknown(std::string_view run, std::vector<int64_t>& ids) const {
  // A run of unknown characters may be a piece as a whole.
  if (const auto id = Find(run)) return ids.push_back(*id);
  const auto byte_id = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
  const bool as_bytes = !byte_ids_.empty() && std::all_of(run.begin(), run.end(),
                                                          [&](char c) { return byte_id(c) >= 0; });
  if (!as_bytes) return ids.push_back(unk_id_);
  for (char c : run) ids.push_back(byte_id(c));
}

void Unigram::Encode(std::string_view word, std::vector<int64_t>& ids) const {
  const std::vector<Node> best = BestPath(word);
  std::vector<std::pair<size_t, size_t>> pieces;  // from the back: begin, end
  for (size_t end = word.size(); end > 0; end = static_cast<size_t>(best[end].begin)) {
    const size_t begin = static_cast<size_t>(best[end].begin);
    const bool fuse =
        best[end].id == unk_id_ && !pieces.empty() && best[pieces.back().second].id == unk_id_;
    if (fuse) {
      pieces.back().first = begin;
    } else {
      pieces.emplace_back(begin, end);
    }
  }
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
    const auto& [begin, end] = *piece;
    if (best[end].id == unk_id_) {
      AppendUnknown(word.substr(begin, end - begin), ids);
    } else {
      ids.push_back(best[end].id);
    }
  }
}

}  // namespace denoised
