// The functions of zlib that Verilator's FST writer calls, with stored blocks (RFC 1950, RFC 1951 section 3.2.4): valid
// for every reader, and waves need no library that is not on PyPI. The FST writer keeps the smaller of both texts anyway.
#pragma once
#include <cstdint>
#include <cstring>

typedef unsigned char Bytef;
typedef unsigned long uLong;
typedef uLong uLongf;
constexpr int Z_OK = 0;

inline uLong compressBound(uLong size) { return size + 5 * (size / 65535 + 1) + 6; }

inline int compress2(Bytef* target, uLongf* target_size, const Bytef* source, uLong size, int) {
  Bytef* out = target;
  *out++ = 0x78;
  *out++ = 0x01;
  uLong at = 0;
  do {
    const uLong count = size - at < 65535 ? size - at : 65535;
    *out++ = at + count == size;  // the last block; stored
    const Bytef head[4] = {Bytef(count), Bytef(count >> 8), Bytef(~count), Bytef(~count >> 8)};
    std::memcpy(out, head, 4);
    std::memcpy(out + 4, source + at, count);
    out += 4 + count;
    at += count;
  } while (at < size);
  uint32_t a = 1, b = 0;  // Adler-32
  for (uLong i = 0; i < size; ++i) {
    a = (a + source[i]) % 65521;
    b = (b + a) % 65521;
  }
  const Bytef check[4] = {Bytef(b >> 8), Bytef(b), Bytef(a >> 8), Bytef(a)};
  std::memcpy(out, check, 4);
  *target_size = uLong(out + 4 - target);
  return Z_OK;
}
