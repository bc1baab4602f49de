// ap_int<W> and ap_uint<W> over clang's _BitInt, with the widths and conversions of the Xilinx types.
//
// For the C simulation and for the RTL generator; Vitis HLS uses its own header of this name. Every operator gives the
// width, signedness and value that the vendor's types give: a + b has max(W1, W2) + 1 bits (one more for mixed signs),
// a * b has W1 + W2, shifts keep the left operand's type, a C integer counts with its own width (int: 32 bits).
// What the vendor's headers accept only by way of a 64-bit conversion (arithmetic on concatenations) does not compile.
//
// No loops and no non-trivial default constructors: both would reach the hardware.
#pragma once

#include <type_traits>
#include <utility>

template <int W> struct ap_int;
template <int W> struct ap_uint;
template <int W, bool S> struct ap_int_base;
template <int W, bool S> struct ap_range_ref;
template <int W, bool S> struct ap_bit_ref;
template <class A, class B> struct ap_concat_ref;

namespace ap_detail {

constexpr int max(int a, int b) { return a > b ? a : b; }
constexpr int min(int a, int b) { return a < b ? a : b; }

/// The machine type of W bits; a signed _BitInt(1) does not exist, two bits stand for it.
template <int W, bool S> struct root { using type = unsigned _BitInt(W); };
template <int W> struct root<W, true> { using type = _BitInt(W < 2 ? 2 : W); };
template <int W, bool S> using bits = typename root<W, S>::type;

/// v modulo 2^W, as a W-bit number.
template <int W, bool S, class V> constexpr bits<W, S> wrap(V v) {
  if constexpr (W == 1 && S)
    return bits<1, true>((v & 1) != 0 ? -1 : 0);
  else
    return static_cast<bits<W, S>>(v);
}

template <int W, bool S> struct factory { using type = ap_uint<W>; };
template <int W> struct factory<W, true> { using type = ap_int<W>; };
template <int W, bool S> using number = typename factory<W, S>::type;

/// What an operand is: its width, its signedness, its value, and (a slice) the signedness of the number it lies in,
/// from which the vendor's headers take the type of a result.
template <int W_, bool S_, bool DECLARED = S_> struct shape {
  static constexpr int W = W_;
  static constexpr bool S = S_;
  static constexpr bool declared = DECLARED;
};

template <int W, bool S> shape<W, S> probe(const ap_int_base<W, S>*);
template <int W, bool S> shape<W, false, S> probe(const ap_range_ref<W, S>*);
template <int W, bool S> shape<1, false> probe(const ap_bit_ref<W, S>*);
template <class A, class B> shape<ap_concat_ref<A, B>::width, false> probe(const ap_concat_ref<A, B>*);
// `long` has 32 bits in the RTL generator's ABI and 64 in simulation: there it does not compile
template <class T>
concept c_integer = std::is_integral_v<T> && (sizeof(long) == 8 || (!std::is_same_v<T, long> && !std::is_same_v<T, unsigned long>));
template <c_integer T>
shape<std::is_same_v<T, bool> ? 1 : int(8 * sizeof(T)), std::is_signed_v<T>> probe(const T*);

template <class T> using of = decltype(probe(static_cast<const std::remove_cvref_t<T>*>(nullptr)));
template <class T> concept operand = requires { typename of<T>; };
template <class T> concept integral = c_integer<std::remove_cvref_t<T>>;
template <class T> concept base = requires(const std::remove_cvref_t<T>* p) {
  []<int W, bool S>(const ap_int_base<W, S>*) {}(p);
};
template <class T> concept slice = requires(const std::remove_cvref_t<T>* p) {
  []<int W, bool S>(const ap_range_ref<W, S>*) {}(p);
};
template <class T> concept bit = requires(const std::remove_cvref_t<T>* p) {
  []<int W, bool S>(const ap_bit_ref<W, S>*) {}(p);
};
template <class T> concept concatenation = requires(const std::remove_cvref_t<T>* p) {
  []<class A, class B>(const ap_concat_ref<A, B>*) {}(p);
};
template <class T> concept part = base<T> || slice<T> || bit<T> || concatenation<T>;

/// Operand pairs of arithmetic: numbers and slices with each other and with C integers, bits with numbers.
template <class A, class B> concept arithmetic =
    ((base<A> || slice<A>) && (base<B> || slice<B> || integral<B>)) || (integral<A> && (base<B> || slice<B>)) ||
    (base<A> && bit<B>) || (bit<A> && base<B>);
/// A C integer compared with a slice is C's comparison with unsigned long long.
template <class A, class B> concept comparison =
    (arithmetic<A, B> && !(integral<A> && slice<B>)) || (concatenation<A> && (base<B> || integral<B>)) ||
    (base<A> && concatenation<B>);

template <operand T> constexpr auto value(const T& x) {
  if constexpr (integral<T>)
    return static_cast<bits<of<T>::W, of<T>::S>>(x);
  else
    return x.value();
}

/// Types of results; LS and RS as the headers declare them.
template <int LW, bool LS, int RW, bool RS> struct result {
  static constexpr int common = max(LW + (RS && !LS), RW + (LS && !RS));
  using plus = number<common + 1, LS || RS>;
  using minus = number<common + 1, true>;
  using mult = number<LW + RW, LS || RS>;
  using logic = number<common, LS || RS>;
  using div = number<LW + RS, LS || RS>;
  using mod = number<min(LW, RW + (!RS && LS)), LS>;
};

/// A slice counts as signed where the number it lies in is signed, but only against a number: the headers say so.
template <class A, class B> struct types {
  static constexpr bool ls = slice<A> && base<B> ? of<A>::declared : of<A>::S;
  static constexpr bool rs = slice<B> && base<A> ? of<B>::declared : of<B>::S;
  using declared = result<of<A>::W, ls, of<B>::W, rs>;
  using computed = result<of<A>::W, of<A>::S, of<B>::W, of<B>::S>;
  /// wide enough for both operands, their sum, difference and quotient
  using wide = bits<max(of<A>::W, of<B>::W) + 2, true>;
};

/// v shifted towards the high bits; by W or more gives 0.
template <int W, bool S, class N> constexpr bits<W, S> shift_up(bits<W, S> v, N n) {
  return n >= static_cast<unsigned>(W) ? bits<W, S>(0) : wrap<W, S>(v << n);
}

/// v shifted towards the low bits, with its sign; by W or more gives 0 or -1.
template <int W, bool S, class N> constexpr bits<W, S> shift_down(bits<W, S> v, N n) {
  return n >= static_cast<unsigned>(W) ? bits<W, S>(v < 0 ? -1 : 0) : wrap<W, S>(v >> n);
}

/// v shifted by n places, the other way where n is negative.
template <bool UP, int W, bool S, operand N> constexpr bits<W, S> shift(bits<W, S> v, const N& n) {
  using unsigned_places = bits<max(of<N>::W, 32), false>;
  const auto places = ap_detail::value(n);
  const bool up = (places >= 0) == UP;
  const auto distance = static_cast<unsigned_places>(places >= 0 ? unsigned_places(places) : unsigned_places(-places));
  return up ? shift_up<W, S>(v, distance) : shift_down<W, S>(v, distance);
}

/// Bits lo to hi of v, which has W bits.
template <int W> constexpr bits<W, false> extract(bits<W, false> v, int hi, int lo) {
  return (v >> lo) & (static_cast<bits<W, false>>(-1) >> (W - 1 - (hi - lo)));
}

/// v with bits lo to hi replaced by those of `with`.
template <int W> constexpr bits<W, false> insert(bits<W, false> v, int hi, int lo, bits<W, false> with) {
  const bits<W, false> mask = (static_cast<bits<W, false>>(-1) >> (W - 1 - (hi - lo))) << lo;
  return (v & ~mask) | ((with << lo) & mask);
}

/// Order as the vendor's types have it, which is C's: where the unsigned operand is at least as wide as the signed one
/// and one has 32 bits or more, both count as unsigned.
template <operand A, operand B> constexpr bool less(const A& a, const B& b) {
  constexpr int WA = of<A>::W, WB = of<B>::W;
  constexpr bool as_unsigned =
      of<A>::S != of<B>::S && max(WA, WB) >= 32 && (of<A>::S ? WB >= WA : WA >= WB);
  using common = bits<max(WA, WB) + 1, !as_unsigned>;
  return static_cast<common>(ap_detail::value(a)) < static_cast<common>(ap_detail::value(b));
}

/// Equality as the vendor's types have it: C's, but of values where both have the same width below 64 bits.
template <operand A, operand B> constexpr bool equal(const A& a, const B& b) {
  constexpr int W = max(of<A>::W, of<B>::W);
  constexpr bool values = of<A>::W == of<B>::W && W < 64;
  using common = bits<values ? W + 1 : max(W, 32), false>;
  return static_cast<common>(ap_detail::value(a)) == static_cast<common>(ap_detail::value(b));
}

/// Division and remainder follow arithmetic only where the vendor's own do: with signs mixed they do not.
template <operand A, operand B> constexpr bool divisible = of<A>::S == of<B>::S;

}  // namespace ap_detail

/// Bits `high` to `low` of a number: an unsigned value of the number's width, and assignable.
template <int W, bool S> struct ap_range_ref {
  ap_int_base<W, S>& number;
  int high, low;

  constexpr ap_range_ref(ap_int_base<W, S>& n, int h, int l) : number(n), high(h), low(l) {}
  constexpr ap_range_ref(const ap_range_ref&) = default;

  constexpr ap_detail::bits<W, false> value() const { return ap_detail::extract<W>(number.raw(), high, low); }
  constexpr int length() const { return high - low + 1; }
  constexpr void set(ap_detail::bits<W, false> v) {
    number.V = ap_detail::wrap<W, S>(ap_detail::insert<W>(number.raw(), high, low, v));
  }
  constexpr ap_range_ref& operator=(const ap_range_ref& other) { return set(other.value()), *this; }
  template <ap_detail::operand T> constexpr ap_range_ref& operator=(const T& x) {
    set(static_cast<ap_detail::bits<W, false>>(ap_detail::value(x)));
    return *this;
  }
  constexpr ap_uint<W> get() const { return *this; }
  constexpr operator unsigned long long() const { return static_cast<unsigned long long>(value()); }
  constexpr int to_int() const { return static_cast<int>(value()); }
  constexpr unsigned to_uint() const { return static_cast<unsigned>(value()); }
  constexpr long long to_int64() const { return static_cast<long long>(value()); }
  constexpr unsigned long long to_uint64() const { return static_cast<unsigned long long>(value()); }
};

/// One bit of a number, assignable.
template <int W, bool S> struct ap_bit_ref {
  ap_int_base<W, S>& number;
  int index;

  constexpr ap_bit_ref(ap_int_base<W, S>& n, int i) : number(n), index(i) {}
  constexpr ap_bit_ref(const ap_bit_ref&) = default;

  constexpr ap_detail::bits<1, false> value() const { return number.get_bit(index); }
  constexpr int length() const { return 1; }
  constexpr void set(ap_detail::bits<1, false> v) { number.set_bit(index, v != 0); }
  constexpr ap_bit_ref& operator=(const ap_bit_ref& other) { return set(other.value()), *this; }
  template <ap_detail::operand T> constexpr ap_bit_ref& operator=(const T& x) {
    set(ap_detail::value(x) != 0);
    return *this;
  }
  constexpr operator bool() const { return value() != 0; }
  constexpr bool to_bool() const { return value() != 0; }
  constexpr bool get() const { return value() != 0; }
  constexpr bool operator~() const { return value() == 0; }
};

/// a above b, assignable; slices take the place of their length.
template <class A, class B> struct ap_concat_ref {
  template <class P> using held = std::conditional_t<ap_detail::base<P>, P&, P>;
  static constexpr int width = ap_detail::of<A>::W + ap_detail::of<B>::W;
  held<A> a;
  held<B> b;

  constexpr ap_concat_ref(held<A> high, held<B> low) : a(high), b(low) {}
  constexpr ap_concat_ref(const ap_concat_ref&) = default;

  constexpr ap_detail::bits<width, false> value() const {
    using high = ap_detail::bits<ap_detail::of<A>::W, false>;
    using low = ap_detail::bits<ap_detail::of<B>::W, false>;
    using all = ap_detail::bits<width, false>;
    return (static_cast<all>(static_cast<high>(a.value())) << b.length()) |
           static_cast<all>(static_cast<low>(b.value()));
  }
  constexpr int length() const { return a.length() + b.length(); }
  constexpr void set(ap_detail::bits<width, false> v) {
    b.set(static_cast<ap_detail::bits<ap_detail::of<B>::W, false>>(v));
    a.set(static_cast<ap_detail::bits<ap_detail::of<A>::W, false>>(v >> b.length()));
  }
  constexpr ap_concat_ref& operator=(const ap_concat_ref& other) { return set(other.value()), *this; }
  template <ap_detail::operand T> constexpr ap_concat_ref& operator=(const T& x) {
    set(static_cast<ap_detail::bits<width, false>>(ap_detail::value(x)));
    return *this;
  }
  constexpr ap_uint<width> get() const { return *this; }
};

/// A number of W bits, two's complement where S.
template <int W, bool S> struct ap_int_base {
  static constexpr int width = W;
  using root = ap_detail::bits<W, S>;
  using same = ap_detail::number<W, S>;
  root V;

  ap_int_base() = default;
#ifdef MOEHLS_RTL  // of the value, where a trivial assignment would be one of bytes, padding among them
  constexpr ap_int_base(const ap_int_base&) = default;
  constexpr ap_int_base& operator=(const ap_int_base& other) {
    V = other.V;
    return *this;
  }
#endif
  template <ap_detail::operand T> constexpr ap_int_base(const T& x)
      : V(ap_detail::wrap<W, S>(ap_detail::value(x))) {}

  constexpr root value() const { return V; }
  constexpr ap_detail::bits<W, false> raw() const { return static_cast<ap_detail::bits<W, false>>(V); }
  constexpr void set(ap_detail::bits<W, false> v) { V = ap_detail::wrap<W, S>(v); }
  constexpr int length() const { return W; }

  constexpr operator std::conditional_t<S, long long, unsigned long long>() const {
    return static_cast<std::conditional_t<S, long long, unsigned long long>>(V);
  }
  constexpr bool to_bool() const
    requires(W <= 64)
  {
    return V != 0;
  }
  constexpr char to_char() const { return static_cast<char>(V); }
  constexpr short to_short() const { return static_cast<short>(V); }
  constexpr unsigned short to_ushort() const { return static_cast<unsigned short>(V); }
  constexpr int to_int() const { return static_cast<int>(V); }
  constexpr unsigned to_uint() const { return static_cast<unsigned>(V); }
  constexpr long to_long() const { return static_cast<long>(V); }
  constexpr unsigned long to_ulong() const { return static_cast<unsigned long>(V); }
  constexpr long long to_int64() const { return static_cast<long long>(V); }
  constexpr unsigned long long to_uint64() const { return static_cast<unsigned long long>(V); }

  constexpr bool is_zero() const { return V == 0; }
  constexpr bool iszero() const { return V == 0; }
  constexpr bool sign() const { return V < 0; }
  constexpr bool get_bit(int i) const { return ((raw() >> i) & 1) != 0; }
  constexpr bool test(int i) const { return get_bit(i); }
  constexpr void set_bit(int i, bool v) {
    using u = ap_detail::bits<W, false>;
    V = ap_detail::wrap<W, S>((raw() & ~(u(1) << i)) | (u(v) << i));
  }
  constexpr void set(int i) { set_bit(i, true); }
  constexpr void set(int i, bool v) { set_bit(i, v); }
  constexpr void clear(int i) { set_bit(i, false); }
  constexpr void invert(int i) { set_bit(i, !get_bit(i)); }
  constexpr void b_not() { V = ap_detail::wrap<W, S>(~V); }

  constexpr bool and_reduce() const { return raw() == static_cast<ap_detail::bits<W, false>>(-1); }
  constexpr bool nand_reduce() const { return !and_reduce(); }
  constexpr bool or_reduce() const { return V != 0; }
  constexpr bool nor_reduce() const { return V == 0; }
  constexpr bool xor_reduce() const { return (__builtin_popcountg(raw()) & 1) != 0; }
  constexpr bool xnor_reduce() const { return !xor_reduce(); }
  constexpr int countLeadingZeros() const { return __builtin_clzg(raw(), W); }

  constexpr ap_range_ref<W, S> range(int hi, int lo) const { return {const_cast<ap_int_base&>(*this), hi, lo}; }
  constexpr ap_range_ref<W, S> range() const { return range(W - 1, 0); }
  constexpr ap_range_ref<W, S> operator()(int hi, int lo) const { return range(hi, lo); }
  constexpr ap_bit_ref<W, S> operator[](int i) { return {*this, i}; }
  constexpr ap_bit_ref<W, S> bit(int i) { return {*this, i}; }
  constexpr bool operator[](int i) const { return get_bit(i); }
  constexpr bool bit(int i) const { return get_bit(i); }
  template <ap_detail::base T> constexpr auto concat(const T& low) const { return *this, low; }

  constexpr same operator+() const { return *this; }
  template <int ONE = 1> constexpr auto operator-() const { return ap_uint<ONE>(0) - *this; }
  constexpr same operator~() const { return ap_int_base<W, S>::of_root(ap_detail::wrap<W, S>(~V)); }
  constexpr bool operator!() const { return V == 0; }
  constexpr ap_int_base& operator++() { return *this += true; }
  constexpr ap_int_base& operator--() { return *this -= true; }
  constexpr same operator++(int) {
    const same before = *this;
    *this += true;
    return before;
  }
  constexpr same operator--(int) {
    const same before = *this;
    *this -= true;
    return before;
  }

#define AP_ASSIGN(op)                                                                                       \
  template <ap_detail::operand T> constexpr ap_int_base& operator op##=(const T& x) {                       \
    using common = ap_detail::bits<ap_detail::max(W, ap_detail::of<T>::W) + 2, true>;                       \
    V = ap_detail::wrap<W, S>(static_cast<common>(V) op static_cast<common>(ap_detail::value(x)));          \
    return *this;                                                                                           \
  }
  AP_ASSIGN(+)
  AP_ASSIGN(-)
  AP_ASSIGN(*)
  AP_ASSIGN(&)
  AP_ASSIGN(|)
  AP_ASSIGN(^)
#undef AP_ASSIGN
  template <ap_detail::operand T> constexpr ap_int_base& operator/=(const T& x) { return *this = same(*this) / x; }
  template <ap_detail::operand T> constexpr ap_int_base& operator%=(const T& x) { return *this = same(*this) % x; }
  template <ap_detail::operand T> constexpr ap_int_base& operator<<=(const T& n) {
    V = ap_detail::shift<true, W, S>(V, n);
    return *this;
  }
  template <ap_detail::operand T> constexpr ap_int_base& operator>>=(const T& n) {
    V = ap_detail::shift<false, W, S>(V, n);
    return *this;
  }

  static constexpr same of_root(root v) {
    same r;
    r.V = v;
    return r;
  }
};

template <int W> struct ap_int : ap_int_base<W, true> {
  ap_int() = default;
  template <ap_detail::operand T> constexpr ap_int(const T& x) : ap_int_base<W, true>(x) {}
};

template <int W> struct ap_uint : ap_int_base<W, false> {
  ap_uint() = default;
  template <ap_detail::operand T> constexpr ap_uint(const T& x) : ap_int_base<W, false>(x) {}
};

#define AP_BINARY(op, kind)                                                                                 \
  template <class A, class B>                                                                               \
    requires ap_detail::arithmetic<A, B>                                                                    \
  constexpr auto operator op(const A& a, const B& b) {                                                      \
    using computed = typename ap_detail::types<A, B>::computed::kind;                                       \
    using root = ap_detail::bits<ap_detail::max(computed::width, 2), ap_detail::of<computed>::S>;           \
    const auto r = static_cast<root>(ap_detail::value(a)) op static_cast<root>(ap_detail::value(b));        \
    return typename ap_detail::types<A, B>::declared::kind(                                                 \
        computed::of_root(ap_detail::wrap<computed::width, ap_detail::of<computed>::S>(r)));                \
  }
AP_BINARY(+, plus)
AP_BINARY(-, minus)
AP_BINARY(*, mult)
AP_BINARY(&, logic)
AP_BINARY(|, logic)
AP_BINARY(^, logic)
#undef AP_BINARY

#define AP_DIVISION(op, kind)                                                                               \
  template <class A, class B>                                                                               \
    requires ap_detail::arithmetic<A, B>                                                                    \
  constexpr auto operator op(const A& a, const B& b) {                                                      \
    static_assert(ap_detail::divisible<A, B>, "division of mixed signs: convert both operands to one sign");\
    using computed = typename ap_detail::types<A, B>::computed::kind;                                       \
    using wide = typename ap_detail::types<A, B>::wide;                                                     \
    const wide r = static_cast<wide>(ap_detail::value(a)) op static_cast<wide>(ap_detail::value(b));        \
    return typename ap_detail::types<A, B>::declared::kind(                                                 \
        computed::of_root(ap_detail::wrap<computed::width, ap_detail::of<computed>::S>(r)));                \
  }
AP_DIVISION(/, div)
AP_DIVISION(%, mod)
#undef AP_DIVISION

#define AP_SHIFT(op, up)                                                                                    \
  template <class A, class B>                                                                               \
    requires(!ap_detail::integral<A> && ap_detail::arithmetic<A, B>)                                        \
  constexpr auto operator op(const A& a, const B& n) {                                                      \
    constexpr int W = ap_detail::of<A>::W;                                                                  \
    constexpr bool S = ap_detail::of<A>::S;                                                                 \
    return ap_detail::number<W, ap_detail::types<A, B>::ls>(                                                \
        ap_detail::number<W, S>::of_root(ap_detail::shift<up, W, S>(ap_detail::value(a), n)));              \
  }
AP_SHIFT(<<, true)
AP_SHIFT(>>, false)
#undef AP_SHIFT

#define AP_COMPARISON(op, expression)                                                                       \
  template <class A, class B>                                                                               \
    requires ap_detail::comparison<A, B>                                                                    \
  constexpr bool operator op(const A& a, const B& b) {                                                      \
    return expression;                                                                                      \
  }
AP_COMPARISON(==, ap_detail::equal(a, b))
AP_COMPARISON(!=, !ap_detail::equal(a, b))
AP_COMPARISON(<, ap_detail::less(a, b))
AP_COMPARISON(>, ap_detail::less(b, a))
AP_COMPARISON(<=, !ap_detail::less(b, a))
AP_COMPARISON(>=, !ap_detail::less(a, b))
#undef AP_COMPARISON

namespace ap_detail {
template <int W, bool S> constexpr ap_int_base<W, S>& part_of(const ap_int_base<W, S>& x) {
  return const_cast<ap_int_base<W, S>&>(x);
}
template <class P>
  requires(!base<P>)
constexpr P part_of(const P& x) {
  return x;
}
template <class T> using plain = std::remove_cvref_t<decltype(part_of(std::declval<const T&>()))>;
}  // namespace ap_detail

/// Concatenation: (a, b) has a above b.
template <ap_detail::part A, ap_detail::part B> constexpr auto operator,(const A& a, const B& b) {
  return ap_concat_ref<ap_detail::plain<A>, ap_detail::plain<B>>(ap_detail::part_of(a), ap_detail::part_of(b));
}
template <ap_detail::base A, ap_detail::integral B> constexpr auto operator,(const A& a, const B& b) {
  const ap_uint<ap_detail::of<B>::W> low = b;
  return (a, low).get();
}
template <ap_detail::integral A, ap_detail::base B> constexpr auto operator,(const A& a, const B& b) {
  const ap_uint<ap_detail::of<A>::W> high = a;
  return (high, b).get();
}
