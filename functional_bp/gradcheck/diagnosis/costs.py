"""What the explanations of a wrong gradient cost: of two that fit, the cheaper is told first.

A cost says how unlikely a person is to make a mistake, on one scale for all searches: 0 is a wrong
sign, 1 takes some thought, and beyond 3 something likelier should have been found. Costs add up: of
an edit, of where it stands, of the value that it reads. Each section is in order of likelihood.
"""

# An edit of one equation of a backward pass.
NO_CAST = -0.5  # a cast to a coarser format, left out
LIKELIEST = 0.0  # another sign, direction, axis, branch, or a mean for a sum
KEEPDIMS = 0.02  # broadcast along another axis, for want of keepdims=True
REDUCED_AXIS = 0.05  # a sum along another axis
OTHER_RELATION = 0.1  # > for <
TRIANGLE_TRANSPOSED = 0.1  # the matrix of a triangular solve
MINUS_SWAPPED = 0.2  # b - a for a - b
NO_BOUND = 0.2  # a bound that is a number, left out
OPERAND_TRANSPOSED = 0.2  # a square operand
PADDING_MODE = 0.2  # zeros for edges; 1 more for another mode
POWER = 0.3  # another positive exponent
SLICE_MOVED = 0.3  # a slice that starts elsewhere
PADDING_MOVED = 0.3  # more padding on the other side
FACTORS_SWAPPED = 0.3  # b @ a for a @ b
ROLLED_BACK = 0.3  # rolled the other way
RIGHT_SIDE_TRANSPOSED = 0.3  # of a triangular solve
STRICTNESS = 0.4  # >= for >
PRODUCT_TRANSPOSED = 0.4  # (a @ b).T
DIAGONAL = 0.4  # a triangle from another diagonal on
NUMBER = 0.4  # another number in the code
THRESHOLD = 0.5  # another number to compare with
PRODUCT_OR_QUOTIENT = 0.5  # a / b for a * b
NOT_CONJUGATED = 0.5  # conj left out
PARTS_SWAPPED = 0.5  # two parts of a concatenation
AXES_IN_ORDER = 0.5  # another order of a transpose's axes
REDUCED_AXES = 0.5  # a sum along more or fewer axes
CHANNELS_SWAPPED = 0.5  # two axes of a convolution's operand
NOT_ROLLED = 0.5  # a roll left out
OTHER_FUNCTION = 0.6  # cos for sin
KERNEL_REVERSED = 0.6  # an operand of a convolution
ROLLED_BY_ONE = 0.6  # by one more or less
ZERO_END = 0.6  # zeros for the first part
INDEX_BY_ONE = 0.6  # an index one more or less
FACTOR_TOO_MANY = 0.7  # a factor or a division left out
OTHER_TRIANGLE = 0.7  # triu for tril
INDEX_AT_AN_END = 0.7  # the first or the last index
OTHER_EXTREME_OF_A_BOUND = 0.8  # minimum for maximum, of a number
ONE_BRANCH = 0.8  # one branch everywhere
STRIDE = 0.8  # another stride or dilation
OTHER_SIDE = 0.8  # a solve from the other side
NEGATED = 0.8  # a minus before a result
ZERO_BRANCH = 0.9  # zero for a branch
OPERAND_CONJUGATED = 0.9  # conj of an operand
STACKED_REVERSED = 0.9  # what a scan stacks
FUNCTION_OF_CALL = 0.9  # another function of the array that a call computes from
OTHER_WAY_ROUND = 1.0  # b - a for a + b, b / a for a / b
TERM_TOO_MANY = 1.0  # a term left out
ONE_OF_TWO_VALUES = 1.0  # a maximum of two values, left out
NEGATIVE_POWER = 1.0  # a negative exponent
CONSTANT_CONDITION = 1.0  # a condition that always or never holds
NOT_APPLIED = 1.0  # a function left out
SCANNED_REVERSED = 1.0  # what a scan runs over
RESULT_TRANSPOSED = 1.0  # a result transposed
SCALED = 1.0  # a constant factor of a result
SQUARED_OPERAND = 1.1  # x ** 2 in a difference
USUAL_AXES_SWAPPED = 1.1  # the first two or the last two
TERM_SCALED = 1.1  # a constant factor of a term or a branch
FIRST_TERM_TOO_MANY = 1.2  # -b for a - b
RESULT_CONJUGATED = 1.2  # conj of a result
SOLVE = 1.2  # a solve for a product
SUM_OF_VALUE = 1.2  # the sum of a value for an entry of it
NUMBER_NEGATED = 1.2  # a minus before a number in the code
LAST_AXES_REVERSED = 1.3  # reversed along the last two axes
FACTOR = 1.3  # a value as a factor
NUMBER_ADDED = 1.3  # a number as a term
AXES_SWAPPED = 1.4  # two other axes
OTHER_OPERAND = 1.4  # another value as an operand
OF_THE_ABSOLUTE_VALUE = 1.5  # |x| > c for x > c
SCANNED_SHIFTED = 1.5  # what a scan runs over, by one
FROM_ZEROS = 1.5  # a scan that starts from zeros
OTHER_REDUCTION = 1.5  # max for sum
INDEXED_ROWS = 1.5  # x[index]
DIVISOR = 1.5  # a value as a divisor
MASK = 1.5  # zero where a condition holds
STACKED_SHIFTED = 1.6  # what a scan stacks, by one
TERM = 1.6  # a value as a term
ZERO_BORDER = 1.7  # zero for the first or last entries
MATRIX_FACTOR = 1.7  # a product with a square matrix
BORDER_OF_VALUE = 1.8  # another value's first or last entries
FACTOR_OF_OPERAND = 1.8  # a value as a factor of an operand; 1 more as a divisor
COMPLEMENT_OF_OPERAND = 1.9  # 1 - x
CUT_TERM = 1.9  # a part of a longer value as a term
INVERSE_QUOTIENT = 2.0  # b / a for a * b
REVERSED = 2.0  # a result reversed
ROLLED = 2.0  # a result rolled by one
SPECIAL_FUNCTION = 2.0  # digamma, erf
SCALED_BORDER = 2.0  # twice or half of the first or last entries
TERM_OF_OPERAND = 2.0  # a value as a term of an operand
PRODUCT_BRANCH = 2.0  # a product of two values for a branch
ZERO = 2.0  # a result left out
AXES_REVERSED = 2.1  # reversed along two other axes
SOFTMAX = 2.2  # a softmax for another function
FUNCTION_OF_RESULT = 2.2  # a function around a result
OPERAND_REVERSED = 2.2  # an operand reversed
SHIFTED = 2.2  # a result shifted by one, zeros coming in
CONTRACTION = 2.2  # a matrix times a vector for a result
REDUCED_TERM = 2.4  # the sum or mean of a value as a term
PRODUCT_TERM = 2.4  # u * v as a term
FACTOR_OF_FUNCTION = 2.5  # exp(v) as a factor
PROJECTED_TERM = 2.6  # u * sum(u * v) as a term
FUNCTION_OF_OPERAND = 3.0  # a function around an operand
SOFTMAX_OF_OPERAND = 3.5  # a softmax around an operand

# In addition, for what an edit reads and how it is written.
NAMED = 0.0  # a value with a name at that place
FURTHER_OPERAND = 0.1  # the second operand rather than the first
NAMED_AS_PART = 0.25  # a part of a value with a name
ALONG_ONE_AXIS = 0.3  # one of several axes alone
LAST_END = 0.3  # the last part rather than the first
FACTOR_ALREADY = 0.3  # a value that the equation reads
NAMED_ELSEWHERE = 0.5  # an argument or a residual
TERM_ALREADY = 0.5  # a value that the equation reads
PER_ODDITY = 0.5  # for each degree that a number is odd
SCANNED_ALREADY = 0.8  # a value that the scan reads
FOR_A_NUMBER = 0.8  # in the place of a number
UNNAMED = 1.0  # a value without a name
NAMELESS_NUMBER = 6  # the degrees that a number without a name is odd

# In addition, for where an edit stands.
PER_STEP = 0.01  # for each equation nearer the outputs
BEFORE_THE_LAST_STEP = 0.3  # before an expression's last equation
LAID_OUT_BY_A_CALL = 0.3  # what a call is given, laid out by the call
AT_NO_LINE = 0.35  # at none of the person's lines
AT_THE_LAST_STEP = 0.5  # at the last equation of a library's call
IN_WHAT_IS_KEPT = 0.5  # in what the forward pass keeps
AT_A_SECOND_NAME = 0.6  # where a value is given a name
INSIDE_A_CALL = 3.0  # inside a library's call

# How far the search for edits goes.
LIKELY = 1.0  # an edit at most as costly, and none that reads a value is tried
COMPARABLE = 1.0  # edits that cost more by more than this are not told
PLAUSIBLE = 1.8  # an edit at most as costly, and what is kept is not searched
CONVINCING = 2.0  # a pair at most as costly, and no other is looked for

# An edit of the true backward pass that makes it the claim.
PATH_DROPPED = 0.0
PATH_NEGATED = 0.5
PATH_SCALED = 1.0
PATH_TRANSPOSED = 1.0
PATH_REVERSED = 1.5
PATH_REDUCED = 2.0  # its sum or its mean
PATH_SHIFTED = 2.0  # by one, or rolled by one

# What turns the true numbers into the claimed ones.
NOT_FINITE = 0.1
ZERO_THROUGHOUT = 0.2  # the claim or the truth
NOT_LINEAR = 0.3  # in the cotangent
OUTPUT_IGNORED = 0.4  # an output's cotangent
COLLECTIVE = 0.4  # a factor of the devices, or one device's part
SIGN = 0.5
AND_A_CONSTANT = 0.7  # in addition: times a constant
CONJUGATE = 0.8
TRANSPOSED = 0.8
FLIPPED = 0.9
ARGUMENTS_SWAPPED = 0.9  # another argument's cotangent, and the other way round
CONSTANT = 1.0  # a constant with a name: 2, 1/N
ROLLED_ENTRIES = 1.0
SHIFTED_ENTRIES = 1.1  # zeros coming in
REPEATED_INDEX = 1.1  # wrong where an index repeats
PERMUTED = 1.2  # the right numbers in another order
UNSUMMED = 1.2  # a sum or a mean is missing
RESHAPED = 1.3  # in another order of axes
CUMULATED = 1.3  # cumulative sums and differences
PLACE = 1.4  # wrong at certain indices
PLAIN = 1.5  # what costs less is not two faults
REGION = 1.5  # wrong where a condition holds
TIE = 1.6  # wrong where a value repeats
NAMELESS_FACTOR = 2.5  # a constant without a name
WITHOUT_FORMULAS = 3.0  # what costs less makes formulas needless
RETURNED_TWICE = 3.1  # another argument's cotangent
REDUCED = 3.2  # a sum or a mean too many

# In addition, for a region.
PER_ARRAY = 0.01  # for each array that was looked at before
PER_PART = 3.0  # for the part of all entries that is wrong beyond one half

# A quantity in a formula.
KEPT = -0.2  # in addition: a residual
NOT_KEPT = 0.5  # in addition: none, where there are residuals
ARRAY = 1.0  # an array that is known
CONJUGATE_OF_ARRAY = 1.1
KEPT_DIFFERENCE = 1.2  # of two residuals
REDUCED_ARRAY = 1.8  # a softmax, a sum, a norm of its rows
FOR_PRODUCTS = 1.8  # what costs more is no factor beside two others
DIFFERENCE = 1.9  # of two arrays

# How a cotangent gets to an argument's shape.
LIFTED = 0.3  # in addition: through a first product
MEAN_OF_ROWS = 0.3  # a mean over the last axis
TERM_OF_FORMULA = 0.3  # in addition: each term
MEAN = 0.5  # a mean over another axis
OF_RESIDUALS_ALONG_ANOTHER_AXIS = 0.5  # taken off: the next, and a mean over another axis
LIFTED_SUM = 0.6  # in addition: and summed
MEAN_OF_AXES = 0.8  # a mean over several axes
FIRST_ENTRY = 0.8  # an entry for a sum
OF_RESIDUALS = 1.0  # taken off: a product of residuals alone
CONTRACTED = 1.2  # a matrix product
MOVED = 1.5  # transposed, reversed, cumulated

# What a formula explains.
OF_BOTH_SIDES = 0.25  # part of the cost of the claim's and the truth's terms
KNOWN_WHOLE = 0.3  # taken off: what the truth consists of is known as well
NAMED_CONSTANT = 0.4  # in addition, in a quotient: 2, 1/N
OF_THE_GAP = 0.5  # part of the cost of the terms of the difference
FURTHER_TERM = 0.5  # in addition
ONE_TERM_EACH = 0.9  # one term for another
KNOWN_EXCHANGE = 1.0  # taken off: one part of the truth stands for another
NAMELESS_WEIGHT = 1.0  # in addition: a constant without a name
COMPOSITE = 1.0  # in addition: a factor that is a sum
QUOTIENT = 1.2  # a quantity as a factor too many or too few
NAMELESS_CONSTANT = 1.5  # in addition, in a quotient
DIFFERENCE_IN_TERM = 1.5  # in addition: of two arrays, as a factor
GAP = 2.0  # the difference as a sum of terms
TWO_SUMS = 2.5  # two terms for two others
