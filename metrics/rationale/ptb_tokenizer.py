"""
The tokens that the COCO caption evaluation scores: those of Stanford's Penn Treebank tokeniser (CoreNLP 3.4.1), as
pycocoevalcap 1.2 runs it, in lower case and without punctuation.

At each place of a text the rule that matches most characters wins, of equals the first. Rules are regular expressions
over the *kinds* of the characters, where one stand-in serves for all characters beyond ASCII that are treated alike.

Words are whole, with their combining marks, in Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic, Syriac,
Thaana, N'Ko, Ethiopic, Cherokee, Mongolian, Korean, Devanagari, Bengali, Gujarati, Tamil and Telugu. In Thai, Lao,
Chinese and Japanese what stands between spaces and signs is one word. As by the reference, words are cut at some vowel
signs of other scripts (Gurmukhi, Odia, Malayalam, Kannada, Sinhala, Khmer, Myanmar, Tibetan), and emoji and other
characters beyond the basic plane are dropped. Unlike by it, letters and digits that Unicode has since 2012 are kept.
"""

import re
import unicodedata


# Stand-ins for the kinds of characters beyond ASCII. What is unknown is dropped.
LETTER, MARK, DIGIT, SYMBOL, UNKNOWN = "é", "\u0301", "٣", "→", "\0"
SUPERSCRIPT, SUBSCRIPT = "²", "₂"
# Characters beyond ASCII that rules name.
NAMED = "\x80\x91\x92\x93\x94\x96\x97\xa0\xad«»‚„‟–—―‘’‛“”‹›…¢£¤¥€₠₤฿⁄¼½¾⅓⅔⁺⁻₊₋、٫٬\u058a\u2010\u2011"


def ranges(text):
    """The code points of `A-B C ...`, in hexadecimal."""
    pairs = [part.split("-") for part in text.split()]
    return {code for pair in pairs for code in range(int(pair[0], 16), int(pair[-1], 16) + 1)}


# Combining marks and other signs that words go on with. At marks of other scripts the reference cuts words.
MARKS = ranges(
    "2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF 5C1-5C2 5C4-5C5 5C7 "
    "615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 7EB-7F3 900-903 93C 93E-94E 951-955 962-963 "
    "981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7 9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF B82 BBE-BC2 BC6-BC8 "
    "BCA-BCD C01-C03 C3E-C56 D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD"
)
# Tokens by themselves.
SYMBOLS = ranges(
    "A1 A6-A9 AC AE-B1 B4 B6-B8 BF D7 F7 37E 387 589 5BE 5C0 5C3 5C6 5F3-5F4 600-603 606-60C 614 61B 61E-61F 66A 66D "
    "6D4 700-70D 7F6-7F8 964-965 E4F 1FBD 2016-2017 2020-2023 2030-2038 203B 203E-2042 207A-207E 208A-208E 2100-2101 "
    "2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E 213A-213B 2140-2144 214A-214D 214F 2155-215E "
    "2190-2BFF 3001-3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65 FFE0-FFE1 FFE5-FFE6"
)
SUPERSCRIPTS, SUBSCRIPTS = ranges("B2-B3 B9 2070 2074-2079"), ranges("2080-2089")
KNOWN = [(MARKS, MARK), (SYMBOLS, SYMBOL), (SUPERSCRIPTS, SUPERSCRIPT), (SUBSCRIPTS, SUBSCRIPT)]


class Kinds(dict):
    """From code points to kinds, for `str.translate`."""

    def __missing__(self, code):
        self[code] = kind = kind_of(code)
        return kind


def kind_of(code):
    character = chr(code)
    if code < 0x80 or character in NAMED:
        return character
    for codes, kind in KNOWN:
        if code in codes:
            return kind
    if code > 0xFFFF:
        return UNKNOWN
    category = unicodedata.category(character)
    if category.startswith("L"):
        return LETTER
    return DIGIT if category == "Nd" else UNKNOWN


KINDS = Kinds()

# Abbreviations that keep their point: those after which a sentence may end, some only with a capital, and the others.
LAST_ABBREVIATIONS = (
    "(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|fla|"
    "ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp|ltd|plc|pt[ye]s?|rt|"
    "bancorp|bhd|assn|univ|intl|sys|jr|sr|bros|blvd|rd|esq|bldg|ave|etc|al|seq|alex|est|tel|ext|sq|attys?|adm|adj|adv|"
    "asst|assoc|(?:ed|ph)[.]d)|A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
ABBREVIATIONS = (
    "(?i:dept|invt|elec|natl|m[ft]g|ph|ste?|vs|wm|jos|cie|cf|treas|mrs?|ms|drs?|profs?|sens?|reps?|lt|col|gen|messrs|"
    "govs?|rev|maj|sgt|cpl|pvt|capt|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|ens|insp|mlle|mme|msgr|sfc)"
)
# Abbreviations that keep their point before a number.
NUMBERED = "(?i:ca|figs?|prop|nos?|art|bldg|pp|op)"
FILE_ENDINGS = (
    "(?i:bat|bmp|bz2|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp[34g]|pdf|php|pl|png|pptx?|ps|py|"
    "sql|tar|txt|wav|x|xml|zip|3gp|wm[va]|avi|flv)"
)
# A single letter before one of these ends a sentence, and its point goes.
STARTERS = (
    "(?:About|According|Additionally|After|An?|As|At|But|Earlier|He|Here?|However|If|In|It|Last|Many|More|M[rs]\\.|Now|"
    "Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet|You|"
    "</?[A-Za-z][A-Za-z0-9_:.-]*[ ]*/?>)"
)

# Parts of rules, over kinds.
PARTS = {
    "L": f"[A-Za-z{LETTER}]",
    "D": f"[0-9{DIGIT}]",
    "A": "[A-Za-z0-9]",
    "OF_WORD": f"(?:[A-Za-z{LETTER}{MARK}\xad]|&[aeiouAEIOU](?:acute|grave|uml);)",
    "APOS": "(?:['\x92’]|&apos;)",
    "INNER_APOS": "(?:<APOS>|[`\x91‘‛])",
    "HYPHEN": "[-_\u058a\u2010\u2011]",
    "SPACE": r"[ \t\xa0\n]",
    "QUOTE": "[`\x91-\x94‘-‟«»‹›]",
    # foo, foo.bar
    "WORD": "<OF_WORD>(?:<OF_WORD>|<D>)*(?:[.!?]<OF_WORD>(?:<OF_WORD>|<D>)*)*",
    # l'eau, o'clock, 3d
    "PLAIN": "(?:[dDoOlL]<INNER_APOS>(?:<L>|<D>))?(?:<L>|<D>)+",
    # red-brown, snake_case
    "JOINED": "<PLAIN>(?:<HYPHEN><PLAIN>)*",
    # AT&T
    "CAPITALS": "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+",
    # what follows an apostrophe in owl's, they'll
    "SHORT": "(?:[msdMSD]|(?i:re|ve|ll))",
    # U.S
    "ACRONYM": r"[A-Za-z](?:\.[A-Za-z])+",
    # 10, 1,000.5, .5, 10:30
    "NUMBER": "(?:<D>*(?:[.:,\xad٫٬]<D>+)+|<D>+)",
    # what telephone numbers consist of
    "FEW": "[0-9]{2,4}",
    "GAP": "[- \xa0]",
    "ATTRIBUTE": """[A-Za-z][A-Za-z0-9_:.-]*(?:[ ]*=[ ]*['"][^\n'"]*['"])?""",
    "OF_URL": r"""[^ \t\n"<>|(){}]""",
    "END_OF_URL": r"""[^ \t\n"<>|.!?(){},-]""",
    "OF_DOMAIN": r"""[^ \t\n"<>|.!?(){},]""",
    "OF_SITE": r"""[^ \t\n"`'<>|.!?(){},-_$]""",  # from , to _ are digits and capitals too
    "BEFORE_AT": r"""[^ \t\n"<>|(){}\xa0]""",
    "OF_MAIL": r"""[^ \t\n"<>|(){}.\xa0]""",
}


def rule(pattern):
    """A pattern with its `<PARTS>` filled in. Of one with a group, that is the token."""
    while (filled := re.sub("<([A-Z_]+)>", lambda found: PARTS[found.group(1)], pattern)) != pattern:
        pattern = filled
    return re.compile(pattern)


RULES = [
    # can|not, gon|na, 't|is
    rule("((?i:can))(?i:not)"),
    rule("((?i:gon|wan))(?i:na)"),
    rule("((?i:got))(?i:ta)"),
    rule("((?i:gim|lem))(?i:me)"),
    rule("('(?i:t))(?i:is|was)"),
    # tags and entities of HTML
    rule("<[!?][A-Za-z-][^>\n]*>"),
    rule("<[A-Za-z][A-Za-z0-9_:.-]*(?:[ ]+<ATTRIBUTE>)*[ ]*/?[ ]*>"),
    rule("</[A-Za-z][A-Za-z0-9_:.-]*[ ]*>"),
    rule("&(?:MD|mdash|ndash|amp|lt|gt|quot|apos|nbsp|HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    # words with apostrophes that stay whole: O'Brien, ma'am, '90s
    rule("[A-HJ-XZn]<INNER_APOS><L>{2,}|<L>+[aeiouyAEIOUY]<INNER_APOS>[aeiouA-Z]<L>*|<APOS>[2-9]0(?i:s)"),
    # do|n't, owl|'s
    rule("([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*)(?i:n)<INNER_APOS>(?i:t)"),
    rule("(<WORD>)(?:'<SHORT>[^A-Za-z]|<APOS><SHORT>)"),
    rule("('<SHORT>)[^A-Za-z]|(?!')<APOS><SHORT>"),
    rule("(?i:n)<INNER_APOS>(?i:t)"),
    # 'n', d', ol', 'em, c'mon, y'|all, '80
    rule("<APOS>[nN]<APOS>?|[lLdDjJ]<APOS>|(?i:dunkin|somethin|ol)<APOS>|<APOS>(?i:em|cause|till?)"),
    rule(
        "(?i:nor<APOS>easter|c<APOS>mon|e<APOS>er|s<APOS>mores|ev<APOS>ry|li<APOS>l|nat<APOS>l|cap<APOS>n|c<APOS>est)"
    ),
    rule("([yY]<APOS>)<L>"),
    rule("(<APOS>[0-9]{2})<SPACE>"),
    # words, with their point before other punctuation, and joined by signs: red-brown, U.S.-based, black/white, AT&T
    rule("<WORD>"),
    rule("((?:<WORD>|<JOINED>|<CAPITALS>)\\.)[,;:、]"),
    rule(f"((?:{LAST_ABBREVIATIONS})\\.)(?s:..)"),
    rule("<JOINED>"),
    rule("<A>[A-Za-z0-9.,\xad]*(?:-(?:<ACRONYM>\\.|[A-Za-z0-9\xad]+))+"),
    rule("<A>+(?:-[A-Za-z]+){0,2}(?:\\\\?/<A>+(?:-[A-Za-z]+){0,2}){1,2}"),
    rule("<CAPITALS>"),
    rule("pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|C\\.D\\.s|[cC]\\+\\+|[cCfF]#"),
    # abbreviations, acronyms, initials, file names
    rule(f"(?:{LAST_ABBREVIATIONS})\\."),
    rule(f"{ABBREVIATIONS}\\."),
    rule(f"({NUMBERED}\\.)<SPACE>?<D>"),
    rule("<ACRONYM>\\.|[A-Za-z]\\."),
    rule(f"([A-Za-z])\\.<SPACE>+{STARTERS}<SPACE>"),
    rule(f"((?:<OF_WORD>|<D>)+(?:\\.(?:<OF_WORD>|<D>)+)*\\.{FILE_ENDINGS})[ \t\n.?!,]"),
    # web and e-mail addresses, @names, #tags
    rule("(?i:https?)://<OF_URL>+<END_OF_URL>"),
    rule(
        "(?:www\\.(?:<OF_DOMAIN>+\\.)+[a-zA-Z]{2,4}|(?:<OF_SITE>+\\.)+(?:com|net|org|edu))(?:/<OF_URL>+<END_OF_URL>)?"
    ),
    rule("(?:&lt;|<)?<A><BEFORE_AT>*@(?:<OF_MAIL>+\\.)*<OF_MAIL>+(?:&gt;|>)?"),
    rule("@[A-Za-z_][A-Za-z_0-9]*|#<OF_WORD>+"),
    # dates, numbers, fractions, telephone numbers, US$
    rule("<D>{1,2}[-/]<D>{1,2}[-/]<D>{2,4}"),
    rule("[-+]?<NUMBER>"),
    rule(f"[⁺⁻₊₋]?(?:{SUPERSCRIPT}+|{SUBSCRIPT}+)"),
    rule("(?:<D>{1,4}[- \xa0])?<D>{1,4}(?:\\\\?/|⁄)<D>{1,4}"),
    rule("(?:\\([0-9]{2,3}\\)[ \xa0]?|(?:\\+\\+?)?(?:<FEW><GAP>)?<FEW><GAP>)[0-9]{3,4}<GAP>?[0-9]{3,5}"),
    rule("(?:(?:\\+\\+?)?<FEW>\\.)?<FEW>\\.[0-9]{3,4}\\.[0-9]{3,5}"),
    rule("[A-Z]*\\$"),
    # faces
    rule("([<>]?[:;=][-o*']?[()DPdpO\\\\{@|\\[\\]])[^A-Za-z0-9]"),
    rule("[-\\^x=~<>']_[-\\^x=~<>']"),
    rule("\\([-\\^x=~<>'][_.]?[-\\^x=~<>']\\)|\\([-\\^x=~<>']-[-\\^x=~<>'`]\\)"),
    # signs: escaped brackets, a quotation mark before a word, signs that may be repeated, and any other
    rule("-[lrLR][rcsRCS][bB]-"),
    rule("(')[A-Za-z][^ \t\n\xa0']"),
    rule("[?!]+|\\.{3,5}|-+|#+|@+|\\*+|(?:\\\\\\*)+|_+|<<|>>|''|<QUOTE>{1,2}"),
    rule("[^ \t\n\xa0\0٫٬\u2010\u2011\u058a]"),
]

# Words with a space after them, of which most texts consist: the rules find the same, and take longer.
SIMPLE = re.compile("(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme) )[A-Za-z]+(?= )")

# How signs are written.
WRITTEN = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¢": "cents", "£": "#", "…": "..."}
WRITTEN |= {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
WRITTEN |= {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": ""}
WRITTEN |= dict.fromkeys("€¤\x80₠", "$") | dict.fromkeys([*"–—―\x96\x97", "&MD;", "&mdash;", "&ndash;"], "--")
QUOTES = str.maketrans(dict.fromkeys("‘‛‹\x91", "`") | dict.fromkeys("’›\x92", "'"))
QUOTES |= str.maketrans(dict.fromkeys("“«\x93", "``") | dict.fromkeys("”»\x94", "''"))
QUOTED = rule("<QUOTE>+|<APOS><SHORT>|n<INNER_APOS>t")
WITHIN = str.maketrans({"(": "-lrb-", ")": "-rrb-", "\xad": None})
# The reference removes these tokens. It also lists "-LRB-" and its like, but after lowercasing they no longer match,
# so brackets stay in the text as "-lrb-" and "-rrb-".
REMOVED = {
    "''",
    "'",
    "``",
    "`",
    '"',
    ".",
    "?",
    "!",
    ",",
    ":",
    ";",
    "-",
    "--",
    "---",
    "----",
    "...",
    "....",
    ".....",
    "",
}


def tokenize(text):
    """The tokens of a text, in lower case and without punctuation."""
    text = re.sub("[\r\n\x0b\x0c\x85\u2028\u2029]", " ", text) + "\n"
    tokens = [written(text[start:end]) for start, end in spans(text.translate(KINDS))]
    return [token for token in tokens if token not in REMOVED]


def spans(kinds):
    """Where tokens start and end."""
    place = 0
    while place < len(kinds):
        found = None if kinds[place] in " \n\t" else SIMPLE.match(kinds, place) or longest(kinds, place)
        if found is None:  # a space, or a character that the reference drops
            place += 1
            continue
        start, place = place, found.end(found.lastindex or 0)
        yield start, place


def longest(kinds, place):
    """The match of the rule that matches most characters at this place, or `None`."""
    found = [match for pattern in RULES if (match := pattern.match(kinds, place))]
    return max(found, key=re.Match.end, default=None)


def written(token):
    """The token as the reference writes it."""
    if token in WRITTEN:
        return WRITTEN[token]
    token = token.lower().replace(" ", "\xa0")
    if not re.search("[@/#]|^<.*>$", token):  # addresses and tags stay as they are
        token = token.translate(WITHIN).replace("&amp;", "&")
    return token.translate(QUOTES).replace("&apos;", "'") if QUOTED.fullmatch(token) else token
