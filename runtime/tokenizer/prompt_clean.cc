#include "runtime/tokenizer/prompt_clean.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/tokenizer/html_unescape.h"
#include "runtime/tokenizer/pipeline.h"
#include "runtime/tokenizer/utf8.h"
#include "runtime/tokenizer/windows_1252.h"

namespace denoised {
namespace {

// Fixes repeat until nothing changes, since one may bare the work of another ("&amp;lt;"). The
// bound keeps the work linear for text that is escaped thousands of times over.
constexpr int kMaxRounds = 32;

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

std::optional<uint8_t> ToLatin1(char32_t c) {
  return c <= 0xFF ? std::optional<uint8_t>(static_cast<uint8_t>(c)) : std::nullopt;
}

// The text that results where the bytes of `text` in a single-byte encoding are UTF-8.
std::optional<std::string> Reread(std::u32string_view text,
                                  std::optional<uint8_t> (*to_byte)(char32_t)) {
  std::string bytes;
  for (char32_t c : text) {
    const std::optional<uint8_t> byte = to_byte(c);
    if (!byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
  }
  if (FindInvalidUtf8(bytes) != bytes.size()) return std::nullopt;
  return bytes;
}

// UTF-8 that was read as Latin-1 or Windows-1252. Honest text in these has accented letters alone,
// whose bytes are no UTF-8.
std::string FixMojibake(std::string text) {
  for (int round = 0; round < kMaxRounds && !IsAscii(text); ++round) {
    const std::u32string points = DecodeUtf8(text);
    std::optional<std::string> fixed = Reread(points, ToLatin1);
    if (!fixed) fixed = Reread(points, ToWindows1252);
    if (!fixed) break;
    text = std::move(*fixed);
  }
  return text;
}

struct Ligature {
  char32_t character;
  std::u32string_view letters;
};

// Letters that are joined in print only, and digraphs of old character sets.
constexpr Ligature kLigatures[] = {
    {0x0132, U"IJ"},      {0x0133, U"ij"},      {0x0149, U"\u02BCn"}, {0x01C4, U"D\u017D"},
    {0x01C5, U"D\u017E"}, {0x01C6, U"d\u017E"}, {0x01C7, U"LJ"},      {0x01C8, U"Lj"},
    {0x01C9, U"lj"},      {0x01CA, U"NJ"},      {0x01CB, U"Nj"},      {0x01CC, U"nj"},
    {0x01F1, U"DZ"},      {0x01F2, U"Dz"},      {0x01F3, U"dz"},      {0xFB00, U"ff"},
    {0xFB01, U"fi"},      {0xFB02, U"fl"},      {0xFB03, U"ffi"},     {0xFB04, U"ffl"},
    {0xFB05, U"\u017Ft"}, {0xFB06, U"st"},
};

void AppendCharacter(char32_t c, std::u32string& out) {
  const auto* found = std::find_if(std::begin(kLigatures), std::end(kLigatures),
                                   [&](const Ligature& l) { return l.character == c; });
  if (found != std::end(kLigatures)) {
    out += found->letters;
  } else if (c == 0x3000) {
    out.push_back(U' ');
  } else if (c >= 0xFF01 && c <= 0xFFEF) {  // full-width and half-width forms
    std::string text;
    AppendUtf8(c, text);
    out += DecodeUtf8(Nfkc(text));
  } else {
    out.push_back(c);
  }
}

char32_t StraightQuote(char32_t c) {
  if (c == 0x02BC || (c >= 0x2018 && c <= 0x201B)) return U'\'';
  return c >= 0x201C && c <= 0x201F ? U'"' : c;
}

// The steps that look at one character: C1 controls, ligatures, widths, quotes.
std::u32string FixCharacters(std::u32string_view text) {
  std::u32string out;
  for (char32_t c : text) {
    if (c >= 0x80 && c <= 0x9F) c = FromWindows1252(static_cast<uint8_t>(c));
    AppendCharacter(c, out);
  }
  std::transform(out.begin(), out.end(), out.begin(), StraightQuote);
  return out;
}

// "\r\n", "\r", U+2028, U+2029 and U+0085 to "\n".
std::u32string FixLineBreaks(std::u32string_view text) {
  std::u32string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == U'\r' && i + 1 < text.size() && text[i + 1] == U'\n') continue;
    const bool line_break = c == U'\r' || c == 0x2028 || c == 0x2029 || c == 0x85;
    out.push_back(line_break ? U'\n' : c);
  }
  return out;
}

// Length of the terminal escape "ESC [ digits-and-semicolons letter" at the front, 0: none.
size_t TerminalEscape(std::u32string_view text) {
  if (text.size() < 3 || text[0] != 0x1B || text[1] != U'[') return 0;
  size_t at = 2;
  while (at < text.size() && (text[at] == U';' || (text[at] >= U'0' && text[at] <= U'9'))) ++at;
  if (at == text.size()) return 0;
  const char32_t letter = text[at] | 0x20;
  return letter >= U'a' && letter <= U'z' ? at + 1 : 0;
}

// Control characters without a visible effect that nobody writes on purpose.
bool IsUselessControl(char32_t c) {
  return c <= 0x08 || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F ||
         (c >= 0x206A && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
}

std::u32string RemoveControls(std::u32string_view text) {
  std::u32string out;
  while (!text.empty()) {
    const size_t escape = TerminalEscape(text);
    if (escape == 0 && !IsUselessControl(text[0])) out.push_back(text[0]);
    text.remove_prefix(std::max<size_t>(escape, 1));
  }
  return out;
}

std::string FixRound(std::string text, bool unescape) {
  if (unescape) text = UnescapeHtmlCarefully(text);
  text = FixMojibake(std::move(text));
  const std::u32string fixed = RemoveControls(FixLineBreaks(FixCharacters(DecodeUtf8(text))));
  return Nfc(EncodeUtf8(fixed));
}

// One line with its line break.
std::string FixLine(std::string line, bool unescape) {
  for (int round = 0; round < kMaxRounds; ++round) {
    std::string fixed = FixRound(line, unescape);
    if (fixed == line) break;
    line = std::move(fixed);
  }
  return line;
}

// Text that has a '<' may be HTML, where a reference is meant as it stands: from that line on none
// is resolved.
std::string FixText(std::string_view text) {
  std::string out;
  bool unescape = true;
  while (!text.empty()) {
    const size_t line_end = text.find('\n');
    const std::string_view line =
        line_end == std::string_view::npos ? text : text.substr(0, line_end + 1);
    unescape = unescape && line.find('<') == std::string_view::npos;
    out += FixLine(std::string(line), unescape);
    text.remove_prefix(line.size());
  }
  return out;
}

std::string CollapseBlanks(std::string_view text) {
  std::string out;
  bool blank = false;
  for (char32_t c : DecodeUtf8(text)) {
    if (IsBlank(c)) {
      blank = !out.empty();
      continue;
    }
    if (blank) out.push_back(' ');
    blank = false;
    AppendUtf8(c, out);
  }
  return out;
}

}  // namespace

std::string CleanPrompt(std::string_view utf8) {
  RequireUtf8Prompt(utf8);
  return CollapseBlanks(UnescapeHtml(UnescapeHtml(FixText(utf8))));
}

}  // namespace denoised
