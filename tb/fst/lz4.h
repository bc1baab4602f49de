// The two functions of LZ4 that Verilator's FST writer calls: a greedy compressor to the LZ4 block format
// (lz4_Block_format.md of github.com/lz4/lz4), so that waves need no library that is not on PyPI.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

// Returns the compressed size; `capacity` must be at least LZ4_compressBound(size).
inline int LZ4_compress_default(const char* source, char* target, int size, int) {
  constexpr int kLastLiterals = 5, kMatchLimit = 12, kMinMatch = 4, kHashBits = 14, kMaxOffset = 65535;
  std::vector<int> table(size_t(1) << kHashBits, -1);
  char* out = target;
  const auto length = [&out](int rest) {
    for (; rest >= 255; rest -= 255) *out++ = char(255);
    *out++ = char(rest);
  };
  const auto literals = [&](int from, int count, int match_code) {
    *out++ = char((count < 15 ? count : 15) << 4 | (match_code < 15 ? match_code : 15));
    if (count >= 15) length(count - 15);
    std::memcpy(out, source + from, size_t(count));
    out += count;
  };
  int anchor = 0;
  for (int at = 0; at + kMatchLimit < size;) {
    uint32_t word;
    std::memcpy(&word, source + at, 4);
    int& slot = table[word * 2654435761u >> (32 - kHashBits)];
    const int from = slot;
    slot = at;
    if (from < 0 || at - from > kMaxOffset || std::memcmp(source + from, source + at, kMinMatch) != 0) {
      ++at;
      continue;
    }
    int match = kMinMatch;
    while (at + match < size - kLastLiterals && source[from + match] == source[at + match]) ++match;
    literals(anchor, at - anchor, match - kMinMatch);
    *out++ = char((at - from) & 255);
    *out++ = char((at - from) >> 8);
    if (match - kMinMatch >= 15) length(match - kMinMatch - 15);
    at += match;
    anchor = at;
  }
  literals(anchor, size - anchor, 0);
  return int(out - target);
}
