# SPDX-License-Identifier: Apache-2.0
"""What the names of the Firefox OS set mean, where they are neither CLDR's nor Unicode's.

Found by looking at the drawings beside those of other sets: `cat` is a cat's *face* here, `catside` the whole animal.
"""

_TABLE = """
2hearts 1F495        acorn 1F330            americasglobe 1F30E    anger 1F4A2          angry 1F620
anguish 1F627        asiaaustraliaglobe 1F30F                      astonished 1F632     banknotedollar 1F4B5
banknoteeuro 1F4B6   banknotepound 1F4B7    banknoteyen 1F4B4      beachumbrella 1F3D6  bellcancellation 1F515
bolt 26A1            bookmarktab 1F4D1      boot 1F462             bow 1F380            bouquetofflowers 1F490
bunny 1F430          bunnyside 1F407        cat 1F431              catside 1F408        cellphone 1F4F1
chartdownwardstrend 1F4C9                   chartupwardstrend 1F4C8                     chartupwardstrendyen 1F4B9
chilipepper 1F336    closedmailboxlowered 1F4EA                    closedmailboxraised 1F4EB
coldsweat 1F630      confetti 1F38A         confounded 1F616       confused 1F615       construct 1F3D7
controlknob 1F39B    crying 1F622           dash 1F4A8             devilhorns 1F608     diamondshapewithdotinside 1F4A0
disappointed 1F61E   dissapointedrelief 1F625                      dog 1F436            dogside 1F415
dragonhead 1F432     dragonside 1F409       envelopedownarrowabove 1F4E9                europeafricaglobe 1F30D
evergreen 1F332      expressionless 1F611   fallingleaf 1F342      faxicon 1F4E0        fearful 1F628
fishcakeswirl 1F365  flexbicep 1F4AA        flushed 1F633          forkknife 1F374      framewithtiles 1F5BC
frontfacingchick 1F425                      frown 2639             frownmouth 1F626     gem 1F48E
grimacing 1F62C      grin 1F600             grineyes 1F604         grinsquint 1F606     grinsweat 1F605
grintears 1F602      grinwide 1F601         grinwideeyes 1F603     halo 1F607           hampster 1F439
heartarrow 1F498     heartblue 1F499        hearteyes 1F60D        heartgreen 1F49A     heartpurple 1F49C
heartribbon 1F49D    heartyellow 1F49B      heavyexclaimationmarksymbol 2757            heavylatincross 271D
heavymultiplicationsymbol 2716              heels 1F460            highspeedtrainbulletnose 1F685
hourglassflowingsand 23F3                   hushed 1F62F           keyboardandmouse 1F5AE
kissclosedeyes 1F61A kisseyes 1F619         kissing 1F617          leaffluttering 1F343 leftmagnifyingglass 1F50D
leopardside 1F406    lips 1F444             lockandkey 1F510       loudlycrying 1F62D   mahjong 1F004
manltepiececlock 1F570                      mansshirt 1F455        medicalmask 1F637    mensrunner 1F45F
mensshoe 1F45E       meridianglobe 1F310    monkeyhear 1F649       monkeysee 1F648      monkeyspeak 1F64A
mouse 1F42D          mouseside 1F401        neutral 1F610          nomouth 1F636        notebookdecorativecover 1F4D4
nooneunder18symbol 1F51E                    openmailboxlowered 1F4ED                    openmailboxraised 1F4EC
openmouth 1F62E      outbox 1F4E4           pensive 1F614          perservere 1F623     phonerightarrowleft 1F4F2
pig 1F437            pigside 1F416          pigsnout 1F43D         pinkwallet 1F45B     makeupbag 1F45D
poo 1F4A9            pout 1F621             present 1F381          racecar 1F3CE        raincloud 1F327
relieved 1F60C       reminder 1F397         rightmagnifyingglass 1F50E                  rightspeaker 1F508
screamfear 1F631     sleeping 1F634         sleepy 1F62A           smallfrown 1F641     smallsmile 1F642
smileeyes 1F60A      smiletongue 1F60B      smirk 1F60F            snowcloud 1F328      snowmountains 1F3D4
speaker3soundwaves 1F50A                    speakercancellation 1F507                   speakeronesoundwave 1F509
speechbubble 1F4AC   spurtingwhale 1F433    stormcloud 1F329       studiomic 1F399      sunrays 2600
sunraincloud 1F326   sweat 1F613            sweatsplash 1F4A6      telephonereceiver2 1F4DE
tennisball 1F3BE     thoughtbaloon 1F4AD    tie 1F454              tiger 1F42F          tigerside 1F405
tired 1F62B          tongueout 1F61B        tongueoutwink 1F61C    tongueoutwink2 1F61D toykotower 1F5FC
triumph 1F624        unamused 1F612         videocasette 1F4FC     waningbibbousmoon 1F316
weary 1F629          whitesunsmallcloud 1F324                      winking 1F609        womansshirt 1F45A
worried 1F61F        sandals 1F461          blackpushpin 1F4CC     floppydisk2 1F4BE    penoverstampedenvelope 1F58B
handheldvideocamera 1F4F9                   saggitarius 2650       silhouetteohjapan 1F5FE
leftangerbubble 1F5EF                       blackskullcrossbones 2620
wave 1F30A
"""

_words = _TABLE.split()
FXEMOJI_NAMES = dict(zip(_words[::2], _words[1::2], strict=True))
