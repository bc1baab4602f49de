// Memories that know their size, for a C simulation with bounded streams (MOEHLS_BOUNDED): an index outside ends the frame.
//
// `moehls.simulate.bounded` declares them in the place of the arrays; hardware reads anything there, and writes where it should not.
#pragma once

#include "hls_fibers.h"

namespace hls {

/// Words of a memory, as a function that takes any number of them sees them.
template <class T> struct words_of {
  T* const first;
  const char* const name;
  const unsigned long long depth;

  T& operator[](unsigned long long i) const {
    if (i >= depth) outside(name, i, depth);
    return first[i];
  }
};

template <class T, int... SIZES> struct memory;

template <class T, int DEPTH> struct memory<T, DEPTH> {
  const char* const name;
  T words[DEPTH] = {};

  operator words_of<T>() { return {words, name, DEPTH}; }
  T& operator[](unsigned long long i) {
    if (i >= DEPTH) outside(name, i, DEPTH);
    return words[i];
  }
};

/// BANKS memories of one depth.
template <class T, int BANKS, int DEPTH> struct memory<T, BANKS, DEPTH> {
  const char* const name;
  T words[BANKS][DEPTH] = {};

  words_of<T> operator[](unsigned long long bank) {
    if (bank >= BANKS) outside(name, bank, BANKS);
    return {words[bank], name, DEPTH};
  }
};

}  // namespace hls
