// hls::stream<T> and hls::stream<T, DEPTH>, as a queue for the C simulation or, with MOEHLS_RTL, as a port for the RTL
// generator.
//
// C simulation: unbounded, since the processes of a region run one after another; reading an empty stream aborts with
// the stream's name, for the hardware would hang there. A stream that still holds data when it dies is reported.
//
// RTL: a read is a volatile load from the stream's first member, a write a volatile store to it: volatile accesses keep
// their order and need no calling convention. The depth stands in the type, because pointers in LLVM carry none.
#pragma once

#ifdef MOEHLS_RTL

namespace hls {

template <class T, int DEPTH = 0> class stream;

/// The stream as a process sees it.
template <class T> class stream<T, 0> {
  using wire = unsigned _BitInt(8 * sizeof(T));
  volatile wire slot;

public:
  stream() = default;
  explicit stream(const char*) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;

  T read() {
    const wire bits = slot;
    return __builtin_bit_cast(T, bits);
  }
  void read(T& value) { value = read(); }
  void write(const T& value) { slot = __builtin_bit_cast(wire, value); }
  void operator>>(T& value) { value = read(); }
  void operator<<(const T& value) { write(value); }
};

/// The stream as a region declares it: a FIFO of DEPTH places.
template <class T, int DEPTH> class stream : public stream<T, 0> {
  char depth[DEPTH];

public:
  stream() = default;
  explicit stream(const char*) {}
};

}  // namespace hls

#else

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace hls {

template <class T, int DEPTH = 0> class stream;

/// A queue over a vector; the places already read are given back when it runs empty.
template <class T> class stream<T, 0> {
  std::vector<T> queue;
  std::size_t head = 0;
  std::string name;

public:
  stream() : name("hls::stream") {}
  explicit stream(const char* stream_name) : name(stream_name) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() {
    if (!empty()) std::fprintf(stderr, "stream '%s': %zu values left unread\n", name.c_str(), size());
  }

  bool empty() const { return head == queue.size(); }
  bool full() const { return false; }
  std::size_t size() const { return queue.size() - head; }

  T read() {
    if (empty()) {
      std::fprintf(stderr, "stream '%s' is read while empty: the hardware would hang\n", name.c_str());
      std::abort();
    }
    const T value = queue[head++];
    if (empty()) {
      queue.clear();
      head = 0;
    }
    return value;
  }
  void read(T& value) { value = read(); }
  bool read_nb(T& value) {
    if (empty()) return false;
    value = read();
    return true;
  }
  void write(const T& value) { queue.push_back(value); }
  bool write_nb(const T& value) {
    write(value);
    return true;
  }
  void operator>>(T& value) { value = read(); }
  void operator<<(const T& value) { write(value); }
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
  stream() = default;
  explicit stream(const char* stream_name) : stream<T, 0>(stream_name) {}
};

}  // namespace hls

#endif
